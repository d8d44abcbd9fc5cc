// Fastify with postgres.js, with schemas in and out as its guide recommends.
import Fastify from "fastify";
import postgres from "postgres";

const CALLER_ID = 1; // the user `service`, the first in a new database
const sql = postgres({
  max: 10,
  types: {
    bigint: { to: 20, from: [20], parse: Number, serialize: String },
    date: { to: 1082, from: [1082], parse: String, serialize: String }, // a day, not an instant
  },
});
const [integer, string, instant] = [{ type: "integer" }, { type: "string" }, { type: "string", format: "date-time" }];
const title = { type: "string", minLength: 1, maxLength: 200 };
const nullable = ({ type }) => ({ type: [type, "null"] });
const object = (properties, required = []) => ({ type: "object", properties, required });
const params = object({ id: integer });
const shared = { id: integer, description: nullable(string), created_by: integer, version: integer };
const project = object({ ...shared, name: string, created_at: instant, updated_at: instant });
const task = object({
  ...shared, project_id: integer, title: string, priority: integer, status: string, completed: { type: "boolean" },
  due_date: nullable(string), assigned_to: nullable(integer), repository: nullable(string), created_at: instant,
  repository_stars: nullable(integer), repository_description: nullable(string), updated_at: instant,
});
const columns = sql`task.id, task.project_id, task.title, task.description, task.priority, task.status,
  task.status = 'completed' AS completed, task.due_date, task.assigned_to, task.created_by,
  repository.full_name AS repository, repository.stars AS repository_stars,
  repository.description AS repository_description, task.created_at, task.updated_at, task.version`;
const app = Fastify();

app.get("/projects/:id", { schema: { params, response: { 200: project } } }, async ({ params }, reply) => {
  const [found] = await sql`
    SELECT id, name, description, created_by, created_at, updated_at, version FROM projects WHERE id = ${params.id}`;
  return found ?? reply.code(404).send();
});

const querystring = object({ limit: { type: "integer", default: 100 } });
app.get("/projects/:id/tasks/", {
  schema: { params, querystring, response: { 200: { type: "array", items: task } } },
}, async ({ params, query }) => sql`
  SELECT ${columns} FROM tasks task LEFT JOIN repositories repository ON repository.id = task.repository_id
  WHERE task.project_id = ${params.id} ORDER BY -task.priority::bigint, task.id LIMIT ${query.limit}`);

const body = object({ title, description: nullable(string), priority: integer }, ["title"]);
app.post("/projects/:id/tasks/", { schema: { params, body, response: { 201: task } } }, async ({ params, body }, reply) => {
  const { title, description = null, priority = 0 } = body;
  const [created] = await sql`
    WITH task AS (
      INSERT INTO tasks (project_id, title, description, priority, created_by)
      VALUES (${params.id}, ${title}, ${description}, ${priority}, ${CALLER_ID}) RETURNING *
    )
    SELECT ${columns} FROM task LEFT JOIN repositories repository ON repository.id = task.repository_id`;
  return reply.code(201).send(created);
});

const changes = { ...object({ title, description: nullable(string), priority: integer }), minProperties: 1 };
app.put("/tasks/:id", { schema: { params, body: changes, response: { 200: task } } }, async ({ params, body }, reply) => {
  const [updated] = await sql`
    WITH task AS (
      UPDATE tasks SET ${sql(body)}, version = version + 1, updated_at = now() WHERE id = ${params.id} RETURNING *
    )
    SELECT ${columns} FROM task LEFT JOIN repositories repository ON repository.id = task.repository_id`;
  return updated ?? reply.code(404).send();
});

await app.listen({ host: "127.0.0.1", port: Number(process.env.PORT) });
