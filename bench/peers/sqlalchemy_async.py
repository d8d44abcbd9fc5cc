"""FastAPI with SQLAlchemy's asynchronous ORM and response models, as most templates have it."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from models import CALLER_ID, Project, ProjectOut, Task, TaskIn, TaskOut, TaskUpdate, most_urgent
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

engine = create_async_engine("postgresql+asyncpg://", pool_size=10, max_overflow=0)
new_session = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


async def open_session() -> AsyncIterator[AsyncSession]:
    async with new_session() as session:
        yield session


Session = Annotated[AsyncSession, Depends(open_session)]


@app.get("/projects/{project_id}", response_model=ProjectOut)
async def read_project(project_id: int, session: Session) -> Project:
    project = await session.get(Project, project_id)
    if project is None:
        raise HTTPException(404)
    return project


@app.get("/projects/{project_id}/tasks/", response_model=list[TaskOut])
async def list_tasks(project_id: int, session: Session, limit: int = 100) -> list[Task]:
    return list(await session.scalars(most_urgent(project_id, limit)))


@app.post("/projects/{project_id}/tasks/", status_code=201, response_model=TaskOut)
async def create_task(project_id: int, new: TaskIn, session: Session) -> Task:
    task = Task(**new.model_dump(), project_id=project_id, created_by=CALLER_ID)
    session.add(task)
    await session.commit()
    await session.refresh(task)
    return task


@app.put("/tasks/{task_id}", response_model=TaskOut)
async def change_task(task_id: int, change: TaskUpdate, session: Session) -> Task:
    task = await session.scalar(select(Task).where(Task.id == task_id))
    if task is None:
        raise HTTPException(404)
    for name, value in change.model_dump(exclude_unset=True).items():
        setattr(task, name, value)
    task.version += 1
    await session.commit()
    await session.refresh(task)
    return task
