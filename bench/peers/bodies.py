"""What the peers on FastAPI have in common: the bodies of requests, and no telemetry."""

from datetime import date
from typing import Annotated, Literal

from fastapi.telemetry import TelemetryConfig
from pydantic import BaseModel, Field

NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
}  # as the service has it
Title = Annotated[str, Field(min_length=1, max_length=200)]
Status = Literal["pending", "in_progress", "completed"]


class TaskCreate(BaseModel):
    title: Title
    description: str | None = None
    priority: int = 0
    status: Status = "pending"
    due_date: date | None = None
    assigned_to: int | None = None


class TaskUpdate(BaseModel):
    title: Title | None = None
    description: str | None = None
    priority: int | None = None
    status: Status | None = None
    due_date: date | None = None
    assigned_to: int | None = None
