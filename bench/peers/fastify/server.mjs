// Fastify with postgres.js, with schemas in and out as its guide recommends.
import Fastify from "fastify";
import postgres from "postgres";

const CALLER_ID = 1; // the user `service`, whom a new database has first

const sql = postgres({
  max: 10,
  types: {
    bigint: { to: 20, from: [20], parse: Number, serialize: String },
    date: { to: 1082, from: [1082], parse: String, serialize: String }, // 1082 alone: a day is no instant
  },
});

const integer = { type: "integer" };
const string = { type: "string" };
const nullable = ({ type }) => ({ type: [type, "null"] });
const instant = { type: "string", format: "date-time" };

const project = {
  type: "object",
  properties: {
    id: integer, name: string, description: nullable(string), created_by: integer,
    created_at: instant, updated_at: instant, version: integer,
  },
};
const task = {
  type: "object",
  properties: {
    id: integer, project_id: integer, title: string, description: nullable(string), priority: integer,
    status: string, completed: { type: "boolean" }, due_date: nullable(string), assigned_to: nullable(integer),
    created_by: integer, repository: nullable(string), repository_stars: nullable(integer),
    repository_description: nullable(string), created_at: instant, updated_at: instant, version: integer,
  },
};
const id = (name) => ({ type: "object", properties: { [name]: integer } });
const title = { type: "string", minLength: 1, maxLength: 200 };

const columns = sql`
  task.id, task.project_id, task.title, task.description, task.priority, task.status,
  task.status = 'completed' AS completed, task.due_date, task.assigned_to, task.created_by,
  repository.full_name AS repository, repository.stars AS repository_stars,
  repository.description AS repository_description, task.created_at, task.updated_at, task.version`;

const app = Fastify();

app.get("/projects/:project_id", {
  schema: { params: id("project_id"), response: { 200: project } },
}, async (request, reply) => {
  const [found] = await sql`
    SELECT id, name, description, created_by, created_at, updated_at, version
    FROM projects WHERE id = ${request.params.project_id}`;
  return found ?? reply.code(404).send();
});

app.get("/projects/:project_id/tasks/", {
  schema: {
    params: id("project_id"),
    querystring: { type: "object", properties: { limit: { type: "integer", default: 100 } } },
    response: { 200: { type: "array", items: task } },
  },
}, async (request) => sql`
  SELECT ${columns}
  FROM tasks task LEFT JOIN repositories repository ON repository.id = task.repository_id
  WHERE task.project_id = ${request.params.project_id}
  ORDER BY -task.priority::bigint, task.id LIMIT ${request.query.limit}`);

app.post("/projects/:project_id/tasks/", {
  schema: {
    params: id("project_id"),
    body: {
      type: "object",
      required: ["title"],
      properties: { title, description: nullable(string), priority: integer },
    },
    response: { 201: task },
  },
}, async (request, reply) => {
  const { title, description = null, priority = 0 } = request.body;
  const [made] = await sql`
    WITH task AS (
      INSERT INTO tasks (project_id, title, description, priority, created_by)
      VALUES (${request.params.project_id}, ${title}, ${description}, ${priority}, ${CALLER_ID})
      RETURNING *
    )
    SELECT ${columns} FROM task LEFT JOIN repositories repository ON repository.id = task.repository_id`;
  return reply.code(201).send(made);
});

app.put("/tasks/:task_id", {
  schema: {
    params: id("task_id"),
    body: { type: "object", properties: { title, priority: integer } },
    response: { 200: task },
  },
}, async (request, reply) => {
  const { title = null, priority = null } = request.body;
  const [changed] = await sql`
    WITH task AS (
      UPDATE tasks SET title = coalesce(${title}, title), priority = coalesce(${priority}::integer, priority),
        version = version + 1, updated_at = now()
      WHERE id = ${request.params.task_id}
      RETURNING *
    )
    SELECT ${columns} FROM task LEFT JOIN repositories repository ON repository.id = task.repository_id`;
  return changed ?? reply.code(404).send();
});

await app.listen({ host: "127.0.0.1", port: Number(process.env.PORT) });
