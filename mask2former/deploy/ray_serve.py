"""The HTTP service on a Ray cluster: replicas of a model behind one address, as many as the load asks for.

    serve run mask2former.deploy.ray_serve:application model=weights/digits_panoptic.safetensors max_replicas=8

Every replica is the application of tools/serve.py with a model and a queue of its own; Ray shares requests out, and
starts and ends replicas. The token is read from the environment variable MASK2FORMER_TOKEN of the replicas.
"""

# No `from __future__ import annotations`: Ray makes `Arguments` of the command line only if it sees the class itself.
import dataclasses
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, model_validator

from .runtime import load
from .serving import ServiceSettings, create_app, token_from_environment

__all__ = ["Arguments", "application"]


class Arguments(BaseModel):
    """What stands behind `serve run mask2former.deploy.ray_serve:application`, as KEY=VALUE.

    Attributes:
        model: a folder of tools/export_model.py or a checkpoint, by a path that every machine knows.
        config_file: of a checkpoint without a config beside it.
        min_replicas, max_replicas: between which Ray chooses.
        num_cpus: cores, and threads, of a replica.
        num_gpus: of a replica; less than 1 lets several share one.
        max_batch_size, max_pending, timeout_seconds: of each replica, see `ServiceSettings`.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    config_file: str | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    num_cpus: int = 1
    num_gpus: float = 0
    max_batch_size: int = 8
    max_pending: int = 64
    timeout_seconds: float = 30.0

    @model_validator(mode="after")
    def _check(self) -> "Arguments":
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas} and max_replicas={self.max_replicas}: needed is 1 <= min <= max"
            )
        if self.num_cpus < 1:
            raise ValueError(f"num_cpus={self.num_cpus} must be at least 1")
        if not Path(self.model).exists():
            raise ValueError(f"model={self.model!r} does not exist")
        return self


def application(arguments: Arguments) -> Any:
    """The deployment, for `serve run` and `ray.serve.run`; replicas load the model when they start."""
    from ray import serve  # whoever calls this has Ray

    settings = ServiceSettings(
        max_batch_size=arguments.max_batch_size,
        max_pending=arguments.max_pending,
        timeout_seconds=arguments.timeout_seconds,
    )
    deployment: Any = serve.deployment(
        serve.ingress(_builder(arguments, settings))(),
        name="Mask2Former",
        # Replicas take more requests than they batch, so that the next batch waits in the replica and not at the proxy.
        max_ongoing_requests=arguments.max_pending,
        autoscaling_config={
            "min_replicas": arguments.min_replicas,
            "max_replicas": arguments.max_replicas,
            "target_ongoing_requests": 2 * arguments.max_batch_size,
        },
        ray_actor_options={"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus},
        # Requests that a replica has accepted are answered before it ends.
        graceful_shutdown_timeout_s=2 * arguments.timeout_seconds,
    )
    return deployment.bind()


def _builder(arguments: Arguments, settings: ServiceSettings) -> Any:
    model, config_file = str(Path(arguments.model).resolve()), arguments.config_file
    num_threads, device = arguments.num_cpus, "cuda" if arguments.num_gpus else "cpu"

    def build() -> FastAPI:
        """Called in each replica."""
        import torch

        torch.set_num_threads(num_threads)
        with_token = dataclasses.replace(settings, token=token_from_environment())
        return create_app(load(model, config_file=config_file, device=device), with_token)

    return build
