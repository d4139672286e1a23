"""The one place that reads the environment and `ckptd.toml`. Precedence: argument, CKPTD_* variable, file, default."""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from ckptd.ckpt.config import Config, Timing, Tls
from ckptd.ckpt.domain import Found, domain_from
from ckptd.ckpt.durations import age_of
from ckptd.ckpt.errors import AccessError, UsageError
from ckptd.ckpt.places import root_of
from ckptd.ckpt.policy import MTBF_NODE_S, cadence_of

POD_LABELS = Path("/etc/podinfo/labels")
"""Where Kubernetes' examples have the downward API write a pod's labels."""
POD_LABELS_MAX = 1 << 18


class Settings(BaseSettings):
    """Every setting that may come from outside. Unset ones take the defaults of `Config`."""

    model_config = SettingsConfigDict(env_prefix="CKPTD_", toml_file="ckptd.toml", extra="ignore")

    job: str = "default"
    node: int = 0
    nodes: str = ""
    parity: int = 1
    group_size: int = 8
    domain: str = ""
    domain_label: str = ""
    run_dir: Path | None = None
    segment_dir: Path | None = None
    storage: str | None = None
    persist_every: int | str = 0
    stuck_after_s: float = 60.0
    mtbf_node_s: float = MTBF_NODE_S
    keep_last: int = 0
    keep_every: int = 0
    keep_for: str = ""
    slots: int = 3
    memory_bytes: int = 0
    secret_file: Path | None = None
    tls_dir: Path | None = None
    scrub_every_s: float = 600.0
    leave_after_s: float = 60.0
    nice: int = 19
    bandwidth_bytes_s: int = 0
    cpu_share: float = 0.0
    act: str = "restart"
    health_socket: Path | None = None

    @field_validator("storage", mode="before")
    @classmethod
    def _path_or_url(cls, value: object) -> object:
        """A directory may be given as a path, too."""
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @field_validator("persist_every")
    @classmethod
    def _number_or_time(cls, value: int | str) -> int | str:
        """The environment knows only text; what stands in it for a number becomes one."""
        number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
        try:
            if number != 0:
                cadence_of(number, "persist_every")
        except UsageError as error:
            raise ValueError(str(error)) from error
        return number

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    def where(self) -> Path:
        """The run directory: as set, else below the user's runtime directory, one for each job."""
        return (self.run_dir or runtime_root() / self.job).absolute()

    def found_domain(self) -> Found:
        """The failure domain that this node stands in, and who says so. Raises UsageError."""
        labels = None if self.domain else read_labels(POD_LABELS)
        return domain_from(os.environ, labels, setting=self.domain, label=self.domain_label)

    def config(self) -> Config:
        """The daemon's configuration. Raises UsageError or AccessError."""
        run_dir = self.where()
        # A folder for each user: one that all share would belong to whoever came first.
        segments = self.segment_dir or Path(f"/dev/shm/ckptd-{os.getuid()}") / f"{self.job}-{self.node}"  # noqa: S108
        config = Config(
            job=self.job,
            node=self.node,
            nodes=self.addresses(),
            parity=self.parity,
            group_size=self.group_size,
            domain=self.found_domain().domain,
            run_dir=run_dir,
            segment_dir=segments.absolute(),
            storage=root_of(self.storage) if self.storage else None,
            persist_every=self.persist_every,
            stuck_after_s=self.stuck_after_s,
            mtbf_node_s=self.mtbf_node_s,
            keep_last=self.keep_last,
            keep_every=self.keep_every,
            keep_for_s=age_of(self.keep_for, "keep_for") if self.keep_for else 0.0,
            slots=self.slots,
            memory_bytes=self.memory_bytes,
            secret=read_secret(self.secret_file) if self.secret_file else b"",
            scrub_every_s=self.scrub_every_s,
            timing=Timing(leave_after_s=self.leave_after_s),
            nice=self.nice,
            bandwidth_bytes_s=self.bandwidth_bytes_s,
            cpu_share=self.cpu_share,
            act=self.act,
            health_socket=self.health_socket.absolute() if self.health_socket else None,
        ).validate()
        return replace(config, tls=self.tls(datetime.now(timezone.utc)))

    def tls(self, now: datetime) -> Tls | None:
        """This node's certificate and key, checked; None when TLS is off. Raises UsageError or AccessError."""
        if not self.tls_dir:
            return None
        from ckptd.ckpt import certs  # only here: trainers and most commands have no use for its library

        nodes = self.addresses()
        if not 0 <= self.node < len(nodes):
            raise UsageError(f"node {self.node}: expected 0 to {len(nodes) - 1}, the index of this node in --nodes")
        return certs.load(self.tls_dir.absolute(), self.node, nodes[self.node], now)

    def addresses(self) -> tuple[str, ...]:
        """The control address of every node."""
        return tuple(part.strip() for part in self.nodes.split(",") if part.strip()) or ("127.0.0.1:0",)


def read(**arguments: Any) -> Settings:
    """The settings, with `arguments` first; those that are None count as not given. Raises UsageError."""
    try:
        return Settings(**{name: value for name, value in arguments.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"setting {name}: {first['msg']}, found {first['input']!r}") from error
    except (ValueError, OSError) as error:  # the file is not TOML, or not text, or can't be opened
        raise UsageError(f"{Path('ckptd.toml').absolute()}: {error}; correct or remove it") from error


def runtime_root() -> Path:
    """Where run directories live by default: $XDG_RUNTIME_DIR/ckptd, else a folder of this user below /tmp."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "ckptd" if base else Path(tempfile.gettempdir()) / f"ckptd-{os.getuid()}"


def read_labels(path: Path) -> str | None:
    """The pod's labels as the downward API wrote them; None when there is no such file. Raises UsageError."""
    try:
        with path.open("rb") as file:
            content = file.read(POD_LABELS_MAX + 1)
        if len(content) > POD_LABELS_MAX:
            raise ValueError(f"more than {POD_LABELS_MAX} bytes")
        return content.decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        raise UsageError(f"pod labels {path}: {error}; expected a readable text, mount it anew or remove it") from error


def read_secret(path: Path) -> bytes:
    """The job's secret. Raises AccessError when it can't be read or others may read it too."""
    try:
        status = path.stat()
        secret = path.read_bytes().strip()
    except OSError as error:
        raise AccessError(f"secret file {path}: {error.strerror}; make one readable by you alone") from error
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise AccessError(
            f"secret file {path}: others may read it (mode {stat.S_IMODE(status.st_mode):o}); chmod 600 it"
        )
    return secret
