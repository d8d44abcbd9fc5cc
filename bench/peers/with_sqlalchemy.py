"""Two peers on SQLAlchemy's ORM with response models, as most templates have it: `async_app` and
`sync_app`. They check nothing: no key, no rule of access."""

from collections.abc import AsyncIterator, Iterator
from datetime import date, datetime
from typing import Annotated

from bodies import NO_TELEMETRY, TaskCreate, TaskUpdate
from fastapi import Depends, FastAPI, HTTPException
from floor import CALLER_ID
from pydantic import BaseModel
from sqlalchemy import BigInteger, DateTime, ForeignKey, Select, cast, create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship


class Row(DeclarativeBase):
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own
        int: BigInteger,
        datetime: DateTime(timezone=True),
    }
    id: Mapped[int] = mapped_column(primary_key=True)
    description: Mapped[str | None]


class Versioned:
    created_by: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())
    version: Mapped[int] = mapped_column(default=1)


class ProjectRow(Versioned, Row):
    __tablename__ = "projects"
    name: Mapped[str]


class RepositoryRow(Row):
    __tablename__ = "repositories"
    full_name: Mapped[str]
    stars: Mapped[int]


class TaskRow(Versioned, Row):
    __tablename__ = "tasks"
    project_id: Mapped[int]
    title: Mapped[str]
    priority: Mapped[int] = mapped_column(default=0)
    status: Mapped[str] = mapped_column(default="pending")
    due_date: Mapped[date | None]
    assigned_to: Mapped[int | None]
    repository_id: Mapped[int | None] = mapped_column(ForeignKey("repositories.id"))
    source: Mapped[RepositoryRow | None] = relationship(lazy="joined")
    completed = property(lambda task: task.status == "completed")
    repository = property(lambda task: getattr(task.source, "full_name", None))
    repository_stars = property(lambda task: getattr(task.source, "stars", None))
    repository_description = property(lambda task: getattr(task.source, "description", None))


class Answer(BaseModel):
    id: int
    description: str | None
    created_by: int
    created_at: datetime
    updated_at: datetime
    version: int


class Project(Answer):
    name: str


class Task(Answer):
    project_id: int
    title: str
    priority: int
    status: str
    completed: bool
    due_date: date | None
    assigned_to: int | None
    repository: str | None
    repository_stars: int | None
    repository_description: str | None


def most_urgent(project_id: int, limit: int) -> Select[TaskRow]:
    """In the order of the index tasks_by_priority: the database works the same for every server."""
    tasks = select(TaskRow).where(TaskRow.project_id == project_id)
    return tasks.order_by(-cast(TaskRow.priority, BigInteger), TaskRow.id).limit(limit)


def change_fields(task: TaskRow, update: TaskUpdate) -> None:
    for name, value in update.model_dump(exclude_unset=True).items():
        setattr(task, name, value)
    task.version += 1


async_engine = create_async_engine("postgresql+asyncpg://", pool_size=10, max_overflow=0)
async_app = FastAPI(telemetry=NO_TELEMETRY)


async def async_session() -> AsyncIterator[AsyncSession]:
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        yield session


AsyncDb = Annotated[AsyncSession, Depends(async_session)]


@async_app.get("/projects/{project_id}", response_model=Project)
async def read_project(project_id: int, session: AsyncDb) -> ProjectRow:
    if (project := await session.get(ProjectRow, project_id)) is None:
        raise HTTPException(404)
    return project


@async_app.get("/projects/{project_id}/tasks/", response_model=list[Task])
async def list_tasks(project_id: int, session: AsyncDb, limit: int = 100) -> list[TaskRow]:
    return list(await session.scalars(most_urgent(project_id, limit)))


@async_app.post("/projects/{project_id}/tasks/", status_code=201, response_model=Task)
async def create_task(project_id: int, new: TaskCreate, session: AsyncDb) -> TaskRow:
    task = TaskRow(**new.model_dump(), project_id=project_id, created_by=CALLER_ID)
    session.add(task)
    await session.commit()
    await session.refresh(task)
    return task


@async_app.put("/tasks/{task_id}", response_model=Task)
async def update_task(task_id: int, update: TaskUpdate, session: AsyncDb) -> TaskRow:
    if (task := await session.get(TaskRow, task_id)) is None:
        raise HTTPException(404)
    change_fields(task, update)
    await session.commit()
    await session.refresh(task)
    return task


sync_engine = create_engine("postgresql+psycopg://", pool_size=10, max_overflow=0)
sync_app = FastAPI(telemetry=NO_TELEMETRY)


def sync_session() -> Iterator[Session]:
    with Session(sync_engine, expire_on_commit=False) as session:
        yield session


SyncDb = Annotated[Session, Depends(sync_session)]


@sync_app.get("/projects/{project_id}", response_model=Project)
def read_project_sync(project_id: int, session: SyncDb) -> ProjectRow:
    if (project := session.get(ProjectRow, project_id)) is None:
        raise HTTPException(404)
    return project


@sync_app.get("/projects/{project_id}/tasks/", response_model=list[Task])
def list_tasks_sync(project_id: int, session: SyncDb, limit: int = 100) -> list[TaskRow]:
    return list(session.scalars(most_urgent(project_id, limit)))


@sync_app.post("/projects/{project_id}/tasks/", status_code=201, response_model=Task)
def create_task_sync(project_id: int, new: TaskCreate, session: SyncDb) -> TaskRow:
    task = TaskRow(**new.model_dump(), project_id=project_id, created_by=CALLER_ID)
    session.add(task)
    session.commit()
    session.refresh(task)
    return task


@sync_app.put("/tasks/{task_id}", response_model=Task)
def update_task_sync(task_id: int, update: TaskUpdate, session: SyncDb) -> TaskRow:
    if (task := session.get(TaskRow, task_id)) is None:
        raise HTTPException(404)
    change_fields(task, update)
    session.commit()
    session.refresh(task)
    return task
