"""What both SQLAlchemy servers share: the tables as ORM models, bodies and answers as pydantic models."""

from datetime import date, datetime

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import BigInteger, DateTime, ForeignKey, Select, cast, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

CALLER_ID = 1  # the user `service`, whom a new database has first


class Base(DeclarativeBase):
    type_annotation_map = {int: BigInteger, datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy's own


class Project(Base):
    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    description: Mapped[str | None]
    created_by: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    version: Mapped[int]


class Repository(Base):
    __tablename__ = "repositories"

    id: Mapped[int] = mapped_column(primary_key=True)
    full_name: Mapped[str]
    stars: Mapped[int]
    description: Mapped[str | None]


class Task(Base):
    __tablename__ = "tasks"

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int]
    title: Mapped[str]
    description: Mapped[str | None]
    priority: Mapped[int] = mapped_column(default=0)
    status: Mapped[str] = mapped_column(default="pending")
    due_date: Mapped[date | None]
    assigned_to: Mapped[int | None]
    created_by: Mapped[int]
    repository_id: Mapped[int | None] = mapped_column(ForeignKey("repositories.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())
    version: Mapped[int] = mapped_column(default=1)
    source: Mapped[Repository | None] = relationship(lazy="joined")

    @property
    def completed(self) -> bool:
        return self.status == "completed"

    @property
    def repository(self) -> str | None:
        return self.source.full_name if self.source else None

    @property
    def repository_stars(self) -> int | None:
        return self.source.stars if self.source else None

    @property
    def repository_description(self) -> str | None:
        return self.source.description if self.source else None


def most_urgent(project_id: int, limit: int) -> Select[Task]:
    """Ordered as the index tasks_by_urgency is: the database does the same work for every server."""
    urgency = -cast(Task.priority, BigInteger)
    return select(Task).where(Task.project_id == project_id).order_by(urgency, Task.id).limit(limit)


class ProjectOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    name: str
    description: str | None
    created_by: int
    created_at: datetime
    updated_at: datetime
    version: int


class TaskOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    project_id: int
    title: str
    description: str | None
    priority: int
    status: str
    completed: bool
    due_date: date | None
    assigned_to: int | None
    created_by: int
    repository: str | None
    repository_stars: int | None
    repository_description: str | None
    created_at: datetime
    updated_at: datetime
    version: int


class TaskIn(BaseModel):
    title: str = Field(min_length=1, max_length=200)
    description: str | None = None
    priority: int = 0


class TaskUpdate(BaseModel):
    title: str | None = Field(None, min_length=1, max_length=200)
    priority: int | None = None
