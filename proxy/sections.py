"""Settings of the local model and of what it learns, as `proxy.yaml` has them below `slm`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from memory.settings import Learning, Slm
from memory.slm.recipe import Recipe, recipe_of
from proxy.destinations import checked_url


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecipeSection(Section):
    """How an adapter is trained; `memory.slm.recipe` knows the ranges. The quantization is that of `slm`."""

    r: int = Recipe().r
    alpha: float = Recipe().alpha
    dropout: float = Recipe().dropout
    target_modules: tuple[str, ...] = Recipe().target_modules
    learning_rate: float = Recipe().learning_rate
    epochs: float = Recipe().epochs
    max_steps: int = Recipe().max_steps
    warmup_share: float = Recipe().warmup_share
    batch_size: int = Recipe().batch_size
    accumulation: int = Recipe().accumulation
    max_grad_norm: float = Recipe().max_grad_norm
    precision: str = Recipe().precision.value
    gradient_checkpointing: bool = Recipe().gradient_checkpointing
    bias: str = Recipe().bias.value
    save_steps: int = Recipe().save_steps
    save_total_limit: int = Recipe().save_total_limit
    patience: int = Recipe().patience
    seed: int = Recipe().seed
    device: str = Recipe().device.value
    tasks: tuple[str, ...] = tuple(task.value for task in Recipe().tasks)
    passages: int = Recipe().passages
    replay_share: float = Recipe().replay_share
    anchor: float = Recipe().anchor
    row_tokens: int = Recipe().row_tokens

    @field_validator("bias", mode="before")
    @classmethod
    def spelled(cls, value: object) -> object:
        return "none" if value is None else value  # YAML reads a bare `null` so

    @model_validator(mode="after")
    def is_recipe(self) -> "RecipeSection":
        recipe_of(self.model_dump())
        return self


class LearningSection(Section):
    enabled: bool = Learning().enabled
    trigger: Literal["manual", "fixed", "adaptive"] = Learning().trigger
    conversations: Annotated[int, Field(ge=1)] = Learning().conversations
    hours: Annotated[float, Field(gt=0)] = Learning().hours
    importance: Annotated[int, Field(ge=1)] = Learning().importance
    least_samples: Annotated[int, Field(ge=1)] = Learning().least_samples
    most_seconds: Annotated[float, Field(ge=0)] = Learning().most_seconds
    most_memory_mb: Annotated[int, Field(ge=0)] = Learning().most_memory_mb
    canary_share: Annotated[float, Field(gt=0, le=1)] = Learning().canary_share
    canary_answers: Annotated[int, Field(ge=0, le=200)] = Learning().canary_answers
    recipe: RecipeSection = RecipeSection()


class SlmSection(Section):
    backend: Literal["none", "openai", "llamacpp", "transformers"] = Slm().backend
    model: str = Slm().model
    url: str | None = None
    window: Annotated[int, Field(ge=512)] | None = None
    threads: Annotated[int, Field(ge=1, le=64)] = Slm().threads
    quantization: Literal["none", "8bit", "4bit"] = Slm().quantization
    learning: LearningSection = LearningSection()

    @field_validator("backend", "quantization", mode="before")
    @classmethod
    def spelled(cls, value: object) -> object:
        return "none" if value is None else value  # YAML reads a bare `null` so

    @field_validator("url")
    @classmethod
    def is_url(cls, value: str | None) -> str | None:
        return checked_url(value)

    @model_validator(mode="after")
    def is_whole(self) -> "SlmSection":
        if self.backend == "openai" and self.url is None:
            raise ValueError("slm.url is missing: where the engine of `slm.backend: openai` listens")
        if self.backend == "none" and self.url is not None:
            raise ValueError("slm.url names an engine; set `slm.backend: openai`, too")
        return self
