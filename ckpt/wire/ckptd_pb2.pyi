from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Version(_message.Message):
    __slots__ = ("epoch", "step")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("rank", "size", "digest")
    RANK_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    rank: int
    size: int
    digest: str
    def __init__(self, rank: _Optional[int] = ..., size: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("node", "images")
    NODE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    node: int
    images: _containers.RepeatedCompositeFieldContainer[Image]
    def __init__(self, node: _Optional[int] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ...) -> None: ...

class Table(_message.Message):
    __slots__ = ("version", "world", "payloads", "map")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WORLD_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    version: Version
    world: int
    payloads: _containers.RepeatedCompositeFieldContainer[Payload]
    map: GroupMap
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ..., world: _Optional[int] = ..., payloads: _Optional[_Iterable[_Union[Payload, _Mapping]]] = ..., map: _Optional[_Union[GroupMap, _Mapping]] = ...) -> None: ...

class Domain(_message.Message):
    __slots__ = ("node", "name")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    node: int
    name: str
    def __init__(self, node: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class Nodes(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, nodes: _Optional[_Iterable[int]] = ...) -> None: ...

class GroupMap(_message.Message):
    __slots__ = ("number", "parity", "groups", "domains")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PARITY_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    DOMAINS_FIELD_NUMBER: _ClassVar[int]
    number: int
    parity: int
    groups: _containers.RepeatedCompositeFieldContainer[Nodes]
    domains: _containers.RepeatedCompositeFieldContainer[Domain]
    def __init__(self, number: _Optional[int] = ..., parity: _Optional[int] = ..., groups: _Optional[_Iterable[_Union[Nodes, _Mapping]]] = ..., domains: _Optional[_Iterable[_Union[Domain, _Mapping]]] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("version", "world", "image", "origin")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WORLD_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    version: Version
    world: int
    image: Image
    origin: str
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ..., world: _Optional[int] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., origin: _Optional[str] = ...) -> None: ...

class Parity(_message.Message):
    __slots__ = ("version", "group", "stripe", "row", "table")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    STRIPE_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    version: Version
    group: int
    stripe: int
    row: int
    table: str
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ..., group: _Optional[int] = ..., stripe: _Optional[int] = ..., row: _Optional[int] = ..., table: _Optional[str] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("version", "images")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    version: Version
    images: _containers.RepeatedCompositeFieldContainer[Image]
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ..., images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ...) -> None: ...

class Attached(_message.Message):
    __slots__ = ("rank", "pid")
    RANK_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    rank: int
    pid: int
    def __init__(self, rank: _Optional[int] = ..., pid: _Optional[int] = ...) -> None: ...

class Captures(_message.Message):
    __slots__ = ("rank", "free", "begun", "unfinished", "epoch")
    RANK_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    UNFINISHED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    rank: int
    free: int
    begun: Version
    unfinished: _containers.RepeatedCompositeFieldContainer[Version]
    epoch: int
    def __init__(self, rank: _Optional[int] = ..., free: _Optional[int] = ..., begun: _Optional[_Union[Version, _Mapping]] = ..., unfinished: _Optional[_Iterable[_Union[Version, _Mapping]]] = ..., epoch: _Optional[int] = ...) -> None: ...

class Place(_message.Message):
    __slots__ = ("number", "key", "rank", "size")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    number: int
    key: str
    rank: int
    size: int
    def __init__(self, number: _Optional[int] = ..., key: _Optional[str] = ..., rank: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class Agent(_message.Message):
    __slots__ = ("name", "join", "host", "port", "minimum", "maximum", "last_call_s", "since", "place", "reason", "ended")
    NAME_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    LAST_CALL_S_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    name: str
    join: int
    host: str
    port: int
    minimum: int
    maximum: int
    last_call_s: float
    since: int
    place: Place
    reason: str
    ended: str
    def __init__(self, name: _Optional[str] = ..., join: _Optional[int] = ..., host: _Optional[str] = ..., port: _Optional[int] = ..., minimum: _Optional[int] = ..., maximum: _Optional[int] = ..., last_call_s: _Optional[float] = ..., since: _Optional[int] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., reason: _Optional[str] = ..., ended: _Optional[str] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("node", "name", "join")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    node: int
    name: str
    join: int
    def __init__(self, node: _Optional[int] = ..., name: _Optional[str] = ..., join: _Optional[int] = ...) -> None: ...

class Round(_message.Message):
    __slots__ = ("number", "key", "size", "members", "host", "port", "over", "end")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    OVER_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    number: int
    key: str
    size: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    host: str
    port: int
    over: str
    end: str
    def __init__(self, number: _Optional[int] = ..., key: _Optional[str] = ..., size: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., host: _Optional[str] = ..., port: _Optional[int] = ..., over: _Optional[str] = ..., end: _Optional[str] = ...) -> None: ...

class Isolation(_message.Message):
    __slots__ = ("node", "number", "out", "reason")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    OUT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    node: int
    number: int
    out: bool
    reason: str
    def __init__(self, node: _Optional[int] = ..., number: _Optional[int] = ..., out: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class Wish(_message.Message):
    __slots__ = ("number", "key", "reason", "end")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    number: int
    key: str
    reason: str
    end: str
    def __init__(self, number: _Optional[int] = ..., key: _Optional[str] = ..., reason: _Optional[str] = ..., end: _Optional[str] = ...) -> None: ...

class Bar(_message.Message):
    __slots__ = ("number", "version", "reason", "alone")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    number: int
    version: Version
    reason: str
    alone: bool
    def __init__(self, number: _Optional[int] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., reason: _Optional[str] = ..., alone: _Optional[bool] = ...) -> None: ...

class Barred(_message.Message):
    __slots__ = ("lifted", "bars")
    LIFTED_FIELD_NUMBER: _ClassVar[int]
    BARS_FIELD_NUMBER: _ClassVar[int]
    lifted: int
    bars: _containers.RepeatedCompositeFieldContainer[Bar]
    def __init__(self, lifted: _Optional[int] = ..., bars: _Optional[_Iterable[_Union[Bar, _Mapping]]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("node", "boot", "seq", "data_port", "epoch", "ranks", "captures", "held", "parities", "tables", "part", "sealed", "persisted", "questions", "domain", "wanted", "scanned", "agent", "wish", "isolations", "barred")
    NODE_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    DATA_PORT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    CAPTURES_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    PARITIES_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    PERSISTED_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    SCANNED_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    WISH_FIELD_NUMBER: _ClassVar[int]
    ISOLATIONS_FIELD_NUMBER: _ClassVar[int]
    BARRED_FIELD_NUMBER: _ClassVar[int]
    node: int
    boot: str
    seq: int
    data_port: int
    epoch: int
    ranks: _containers.RepeatedCompositeFieldContainer[Attached]
    captures: _containers.RepeatedCompositeFieldContainer[Captures]
    held: _containers.RepeatedCompositeFieldContainer[Held]
    parities: _containers.RepeatedCompositeFieldContainer[Parity]
    tables: _containers.RepeatedCompositeFieldContainer[Table]
    part: Part
    sealed: Version
    persisted: Version
    questions: int
    domain: str
    wanted: Version
    scanned: bool
    agent: Agent
    wish: Wish
    isolations: _containers.RepeatedCompositeFieldContainer[Isolation]
    barred: Barred
    def __init__(self, node: _Optional[int] = ..., boot: _Optional[str] = ..., seq: _Optional[int] = ..., data_port: _Optional[int] = ..., epoch: _Optional[int] = ..., ranks: _Optional[_Iterable[_Union[Attached, _Mapping]]] = ..., captures: _Optional[_Iterable[_Union[Captures, _Mapping]]] = ..., held: _Optional[_Iterable[_Union[Held, _Mapping]]] = ..., parities: _Optional[_Iterable[_Union[Parity, _Mapping]]] = ..., tables: _Optional[_Iterable[_Union[Table, _Mapping]]] = ..., part: _Optional[_Union[Part, _Mapping]] = ..., sealed: _Optional[_Union[Version, _Mapping]] = ..., persisted: _Optional[_Union[Version, _Mapping]] = ..., questions: _Optional[int] = ..., domain: _Optional[str] = ..., wanted: _Optional[_Union[Version, _Mapping]] = ..., scanned: _Optional[bool] = ..., agent: _Optional[_Union[Agent, _Mapping]] = ..., wish: _Optional[_Union[Wish, _Mapping]] = ..., isolations: _Optional[_Iterable[_Union[Isolation, _Mapping]]] = ..., barred: _Optional[_Union[Barred, _Mapping]] = ...) -> None: ...

class Ledger(_message.Message):
    __slots__ = ("collector", "boot", "seq", "epoch", "sealed", "persisted", "persist", "protect", "tables", "reports", "lost", "nodes", "map", "shielded", "round", "isolations", "barred")
    COLLECTOR_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    PERSISTED_FIELD_NUMBER: _ClassVar[int]
    PERSIST_FIELD_NUMBER: _ClassVar[int]
    PROTECT_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    MAP_FIELD_NUMBER: _ClassVar[int]
    SHIELDED_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ISOLATIONS_FIELD_NUMBER: _ClassVar[int]
    BARRED_FIELD_NUMBER: _ClassVar[int]
    collector: int
    boot: str
    seq: int
    epoch: int
    sealed: Version
    persisted: Version
    persist: Version
    protect: Version
    tables: _containers.RepeatedCompositeFieldContainer[Table]
    reports: _containers.RepeatedCompositeFieldContainer[Report]
    lost: _containers.RepeatedScalarFieldContainer[int]
    nodes: int
    map: GroupMap
    shielded: Version
    round: Round
    isolations: _containers.RepeatedCompositeFieldContainer[Isolation]
    barred: Barred
    def __init__(self, collector: _Optional[int] = ..., boot: _Optional[str] = ..., seq: _Optional[int] = ..., epoch: _Optional[int] = ..., sealed: _Optional[_Union[Version, _Mapping]] = ..., persisted: _Optional[_Union[Version, _Mapping]] = ..., persist: _Optional[_Union[Version, _Mapping]] = ..., protect: _Optional[_Union[Version, _Mapping]] = ..., tables: _Optional[_Iterable[_Union[Table, _Mapping]]] = ..., reports: _Optional[_Iterable[_Union[Report, _Mapping]]] = ..., lost: _Optional[_Iterable[int]] = ..., nodes: _Optional[int] = ..., map: _Optional[_Union[GroupMap, _Mapping]] = ..., shielded: _Optional[_Union[Version, _Mapping]] = ..., round: _Optional[_Union[Round, _Mapping]] = ..., isolations: _Optional[_Iterable[_Union[Isolation, _Mapping]]] = ..., barred: _Optional[_Union[Barred, _Mapping]] = ...) -> None: ...

class Letter(_message.Message):
    __slots__ = ("report", "ledger", "sighting")
    REPORT_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    SIGHTING_FIELD_NUMBER: _ClassVar[int]
    report: Report
    ledger: Ledger
    sighting: Sighting
    def __init__(self, report: _Optional[_Union[Report, _Mapping]] = ..., ledger: _Optional[_Union[Ledger, _Mapping]] = ..., sighting: _Optional[_Union[Sighting, _Mapping]] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("first", "stride", "count")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    STRIDE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    first: int
    stride: int
    count: int
    def __init__(self, first: _Optional[int] = ..., stride: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class WatchedGroup(_message.Message):
    __slots__ = ("number", "runs")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    number: int
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, number: _Optional[int] = ..., runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...

class Stamps(_message.Message):
    __slots__ = ("answered", "heard", "sent")
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    HEARD_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    answered: float
    heard: float
    sent: float
    def __init__(self, answered: _Optional[float] = ..., heard: _Optional[float] = ..., sent: _Optional[float] = ...) -> None: ...

class Decided(_message.Message):
    __slots__ = ("epoch", "step", "source")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    step: int
    source: str
    def __init__(self, epoch: _Optional[int] = ..., step: _Optional[int] = ..., source: _Optional[str] = ...) -> None: ...

class Stack(_message.Message):
    __slots__ = ("rank", "text")
    RANK_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    rank: int
    text: str
    def __init__(self, rank: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class Sighting(_message.Message):
    __slots__ = ("node", "boot", "epoch", "world", "at", "digests", "samples", "groups", "stamps", "decided", "stacks", "remarks", "sick")
    NODE_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    WORLD_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    STAMPS_FIELD_NUMBER: _ClassVar[int]
    DECIDED_FIELD_NUMBER: _ClassVar[int]
    STACKS_FIELD_NUMBER: _ClassVar[int]
    REMARKS_FIELD_NUMBER: _ClassVar[int]
    SICK_FIELD_NUMBER: _ClassVar[int]
    node: int
    boot: str
    epoch: int
    world: int
    at: float
    digests: bytes
    samples: bytes
    groups: _containers.RepeatedCompositeFieldContainer[WatchedGroup]
    stamps: Stamps
    decided: Decided
    stacks: _containers.RepeatedCompositeFieldContainer[Stack]
    remarks: _containers.RepeatedScalarFieldContainer[str]
    sick: str
    def __init__(self, node: _Optional[int] = ..., boot: _Optional[str] = ..., epoch: _Optional[int] = ..., world: _Optional[int] = ..., at: _Optional[float] = ..., digests: _Optional[bytes] = ..., samples: _Optional[bytes] = ..., groups: _Optional[_Iterable[_Union[WatchedGroup, _Mapping]]] = ..., stamps: _Optional[_Union[Stamps, _Mapping]] = ..., decided: _Optional[_Union[Decided, _Mapping]] = ..., stacks: _Optional[_Iterable[_Union[Stack, _Mapping]]] = ..., remarks: _Optional[_Iterable[str]] = ..., sick: _Optional[str] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("at", "probe", "explain")
    AT_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    at: float
    probe: _containers.RepeatedScalarFieldContainer[int]
    explain: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, at: _Optional[float] = ..., probe: _Optional[_Iterable[int]] = ..., explain: _Optional[_Iterable[int]] = ...) -> None: ...

class ChallengeRequest(_message.Message):
    __slots__ = ("job", "nonce", "node", "shape")
    JOB_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    job: str
    nonce: bytes
    node: int
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, job: _Optional[str] = ..., nonce: _Optional[bytes] = ..., node: _Optional[int] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class ChallengeReply(_message.Message):
    __slots__ = ("session", "nonce", "proof", "boot")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    BOOT_FIELD_NUMBER: _ClassVar[int]
    session: str
    nonce: bytes
    proof: bytes
    boot: str
    def __init__(self, session: _Optional[str] = ..., nonce: _Optional[bytes] = ..., proof: _Optional[bytes] = ..., boot: _Optional[str] = ...) -> None: ...

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("job", "rank", "world", "local_world", "pid", "epoch")
    JOB_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    WORLD_FIELD_NUMBER: _ClassVar[int]
    LOCAL_WORLD_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    job: str
    rank: int
    world: int
    local_world: int
    pid: int
    epoch: int
    def __init__(self, job: _Optional[str] = ..., rank: _Optional[int] = ..., world: _Optional[int] = ..., local_world: _Optional[int] = ..., pid: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class AttachReply(_message.Message):
    __slots__ = ("node", "nodes", "parity")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    PARITY_FIELD_NUMBER: _ClassVar[int]
    node: int
    nodes: int
    parity: int
    def __init__(self, node: _Optional[int] = ..., nodes: _Optional[int] = ..., parity: _Optional[int] = ...) -> None: ...

class DecideRequest(_message.Message):
    __slots__ = ("job", "world", "fresh", "pid")
    JOB_FIELD_NUMBER: _ClassVar[int]
    WORLD_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    job: str
    world: int
    fresh: bool
    pid: int
    def __init__(self, job: _Optional[str] = ..., world: _Optional[int] = ..., fresh: _Optional[bool] = ..., pid: _Optional[int] = ...) -> None: ...

class DecideReply(_message.Message):
    __slots__ = ("epoch", "version", "source", "reason", "world")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WORLD_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    version: Version
    source: str
    reason: str
    world: int
    def __init__(self, epoch: _Optional[int] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., source: _Optional[str] = ..., reason: _Optional[str] = ..., world: _Optional[int] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("rank", "epoch")
    RANK_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    rank: int
    epoch: int
    def __init__(self, rank: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class GatherRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: Version
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ...) -> None: ...

class Found(_message.Message):
    __slots__ = ("rank", "path", "size", "source")
    RANK_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    path: str
    size: int
    source: str
    def __init__(self, rank: _Optional[int] = ..., path: _Optional[str] = ..., size: _Optional[int] = ..., source: _Optional[str] = ...) -> None: ...

class GatherReply(_message.Message):
    __slots__ = ("images", "opening")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    OPENING_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Found]
    opening: int
    def __init__(self, images: _Optional[_Iterable[_Union[Found, _Mapping]]] = ..., opening: _Optional[int] = ...) -> None: ...

class Stretch(_message.Message):
    __slots__ = ("rank", "first", "last")
    RANK_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    rank: int
    first: int
    last: int
    def __init__(self, rank: _Optional[int] = ..., first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class BringRequest(_message.Message):
    __slots__ = ("version", "stretches", "opening")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STRETCHES_FIELD_NUMBER: _ClassVar[int]
    OPENING_FIELD_NUMBER: _ClassVar[int]
    version: Version
    stretches: _containers.RepeatedCompositeFieldContainer[Stretch]
    opening: int
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ..., stretches: _Optional[_Iterable[_Union[Stretch, _Mapping]]] = ..., opening: _Optional[int] = ...) -> None: ...

class ReserveRequest(_message.Message):
    __slots__ = ("rank", "size", "wait_s")
    RANK_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    rank: int
    size: int
    wait_s: float
    def __init__(self, rank: _Optional[int] = ..., size: _Optional[int] = ..., wait_s: _Optional[float] = ...) -> None: ...

class ReserveReply(_message.Message):
    __slots__ = ("paths",)
    PATHS_FIELD_NUMBER: _ClassVar[int]
    paths: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, paths: _Optional[_Iterable[str]] = ...) -> None: ...

class LendRequest(_message.Message):
    __slots__ = ("rank", "size")
    RANK_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    size: int
    def __init__(self, rank: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class LendReply(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class BeginRequest(_message.Message):
    __slots__ = ("rank", "version", "size", "wait_s", "lent")
    RANK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    LENT_FIELD_NUMBER: _ClassVar[int]
    rank: int
    version: Version
    size: int
    wait_s: float
    lent: str
    def __init__(self, rank: _Optional[int] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., size: _Optional[int] = ..., wait_s: _Optional[float] = ..., lent: _Optional[str] = ...) -> None: ...

class BeginReply(_message.Message):
    __slots__ = ("granted", "slot", "path", "waited_s")
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    WAITED_S_FIELD_NUMBER: _ClassVar[int]
    granted: bool
    slot: int
    path: str
    waited_s: float
    def __init__(self, granted: _Optional[bool] = ..., slot: _Optional[int] = ..., path: _Optional[str] = ..., waited_s: _Optional[float] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("rank", "slot", "version")
    RANK_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    rank: int
    slot: int
    version: Version
    def __init__(self, rank: _Optional[int] = ..., slot: _Optional[int] = ..., version: _Optional[_Union[Version, _Mapping]] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("rank", "slot", "version", "reason")
    RANK_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    rank: int
    slot: int
    version: Version
    reason: str
    def __init__(self, rank: _Optional[int] = ..., slot: _Optional[int] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class PersistRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: Version
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ...) -> None: ...

class PersistReply(_message.Message):
    __slots__ = ("stored",)
    STORED_FIELD_NUMBER: _ClassVar[int]
    stored: bool
    def __init__(self, stored: _Optional[bool] = ...) -> None: ...

class WaitRequest(_message.Message):
    __slots__ = ("version", "level", "timeout_s")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    version: Version
    level: str
    timeout_s: float
    def __init__(self, version: _Optional[_Union[Version, _Mapping]] = ..., level: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class WaitReply(_message.Message):
    __slots__ = ("level",)
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    level: str
    def __init__(self, level: _Optional[str] = ...) -> None: ...

class IncidentsRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class TendRequest(_message.Message):
    __slots__ = ("job", "agent", "pid", "pid_namespace", "workers", "wait_s")
    JOB_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PID_NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    job: str
    agent: Agent
    pid: int
    pid_namespace: int
    workers: _containers.RepeatedScalarFieldContainer[int]
    wait_s: float
    def __init__(self, job: _Optional[str] = ..., agent: _Optional[_Union[Agent, _Mapping]] = ..., pid: _Optional[int] = ..., pid_namespace: _Optional[int] = ..., workers: _Optional[_Iterable[int]] = ..., wait_s: _Optional[float] = ...) -> None: ...

class TendReply(_message.Message):
    __slots__ = ("state", "reason", "place", "host", "port", "end")
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    state: str
    reason: str
    place: Place
    host: str
    port: int
    end: str
    def __init__(self, state: _Optional[str] = ..., reason: _Optional[str] = ..., place: _Optional[_Union[Place, _Mapping]] = ..., host: _Optional[str] = ..., port: _Optional[int] = ..., end: _Optional[str] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("name", "ended", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    ended: str
    reason: str
    def __init__(self, name: _Optional[str] = ..., ended: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class RestartRequest(_message.Message):
    __slots__ = ("reason", "isolate", "admit", "give_up", "from_step", "from_newest")
    REASON_FIELD_NUMBER: _ClassVar[int]
    ISOLATE_FIELD_NUMBER: _ClassVar[int]
    ADMIT_FIELD_NUMBER: _ClassVar[int]
    GIVE_UP_FIELD_NUMBER: _ClassVar[int]
    FROM_STEP_FIELD_NUMBER: _ClassVar[int]
    FROM_NEWEST_FIELD_NUMBER: _ClassVar[int]
    reason: str
    isolate: _containers.RepeatedScalarFieldContainer[int]
    admit: _containers.RepeatedScalarFieldContainer[int]
    give_up: bool
    from_step: int
    from_newest: bool
    def __init__(self, reason: _Optional[str] = ..., isolate: _Optional[_Iterable[int]] = ..., admit: _Optional[_Iterable[int]] = ..., give_up: _Optional[bool] = ..., from_step: _Optional[int] = ..., from_newest: _Optional[bool] = ...) -> None: ...

class Document(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...
