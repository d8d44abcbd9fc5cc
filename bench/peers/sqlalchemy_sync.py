"""FastAPI with SQLAlchemy's synchronous ORM and response models, on a pool of threads."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from models import CALLER_ID, Project, ProjectOut, Task, TaskIn, TaskOut, TaskUpdate, most_urgent
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session as DbSession
from sqlalchemy.orm import sessionmaker

engine = create_engine("postgresql+psycopg://", pool_size=10, max_overflow=0)
new_session = sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


def open_session() -> Iterator[DbSession]:
    with new_session() as session:
        yield session


Session = Annotated[DbSession, Depends(open_session)]


@app.get("/projects/{project_id}", response_model=ProjectOut)
def read_project(project_id: int, session: Session) -> Project:
    project = session.get(Project, project_id)
    if project is None:
        raise HTTPException(404)
    return project


@app.get("/projects/{project_id}/tasks/", response_model=list[TaskOut])
def list_tasks(project_id: int, session: Session, limit: int = 100) -> list[Task]:
    return list(session.scalars(most_urgent(project_id, limit)))


@app.post("/projects/{project_id}/tasks/", status_code=201, response_model=TaskOut)
def create_task(project_id: int, new: TaskIn, session: Session) -> Task:
    task = Task(**new.model_dump(), project_id=project_id, created_by=CALLER_ID)
    session.add(task)
    session.commit()
    session.refresh(task)
    return task


@app.put("/tasks/{task_id}", response_model=TaskOut)
def change_task(task_id: int, change: TaskUpdate, session: Session) -> Task:
    task = session.scalar(select(Task).where(Task.id == task_id))
    if task is None:
        raise HTTPException(404)
    for name, value in change.model_dump(exclude_unset=True).items():
        setattr(task, name, value)
    task.version += 1
    session.commit()
    session.refresh(task)
    return task
