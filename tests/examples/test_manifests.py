"""The Kubernetes manifests fit the schemas, ckptd's exit codes and times, and each other."""

from __future__ import annotations

import copy
from typing import Any

import kubernetes_validate
import pytest
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from pydantic import ValidationError
from tests.examples.scripts import EXAMPLES, commands, container_scripts, documents

from ckptd.ckpt.rounds import GIVEN_UP_EXIT, ISOLATED_EXIT
from ckptd.examples import train_gpt
from ckptd.integrations import launch

KUBERNETES = "1.37"
DAEMONS, TRAINERS = (EXAMPLES / "kubernetes" / name for name in ("daemons.yaml", "trainers.yaml"))


def by_kind() -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for path in (DAEMONS, TRAINERS) for document in documents(path)}


def check(document: dict[str, Any]) -> None:
    """Raise when a manifest lacks a field, has one that nobody knows, or one of a wrong type."""
    if document["kind"] != "JobSet":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    known = JobsetV1alpha2JobSet.from_dict(document)
    assert known is not None
    assert known.to_dict() == document, "fields that JobSet does not have"
    for job in document["spec"]["replicatedJobs"]:
        template = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]}
        kubernetes_validate.validate(template, KUBERNETES, strict=True)


@pytest.mark.parametrize("kind", ["ConfigMap", "DaemonSet", "JobSet"])
def test_manifests_fit_their_schemas(kind: str) -> None:
    """Every field is known, and of the right type: Kubernetes' own schemas, strictly, and JobSet's."""
    check(by_kind()[kind])


POD = ["spec", "replicatedJobs", 0, "template", "spec", "template", "spec"]
BROKEN: list[tuple[str, list[Any], object]] = [
    ("DaemonSet", ["spec", "template", "spec", "hostNetworks"], True),
    ("DaemonSet", ["spec", "template", "spec", "terminationGracePeriodSeconds"], "30s"),
    ("JobSet", [*POD, "hostPid"], True),
    ("JobSet", [*POD[:5], "parallelism"], "five"),
    ("JobSet", ["spec", "failurePolicy", "rule"], []),
]


@pytest.mark.parametrize(("kind", "path", "value"), BROKEN)
def test_a_wrong_field_is_noticed(kind: str, path: list[Any], value: object) -> None:
    document = copy.deepcopy(by_kind()[kind])
    at: Any = document
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises((kubernetes_validate.ValidationError, ValidationError, AssertionError)):
        check(document)


def test_the_job_is_what_its_daemons_are_made_for() -> None:
    """As many agents as nodes in the list, spares among them, each found by the label; no index too few for success."""
    kinds = by_kind()
    nodes = kinds["ConfigMap"]["data"]["CKPTD_NODES"].split(",")
    job = kinds["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    seats = int(agent_options().nnodes)
    assert job["parallelism"] == job["completions"] == len(nodes)
    assert job["successPolicy"]["rules"] == [{"succeededCount": seats}]
    assert job["maxFailedIndexes"] == len(nodes) - seats
    pods = [kinds["DaemonSet"]["spec"]["template"]["spec"], job["template"]["spec"]]
    assert pods[0]["nodeSelector"] == pods[1]["nodeSelector"]
    for shared in ("shm", "run"):
        volumes = [next(volume["hostPath"] for volume in pod["volumes"] if volume["name"] == shared) for pod in pods]
        mounts = [next(m for m in pod["containers"][0]["volumeMounts"] if m["name"] == shared) for pod in pods]
        assert volumes[0] == volumes[1]
        assert mounts[0]["mountPath"] == mounts[1]["mountPath"] == volumes[0]["path"]
    assert kinds["ConfigMap"]["data"]["CKPTD_RUN_DIR"].startswith(
        "/run/ckptd/"
    )  # of a folder that daemons may make 0700
    assert all(pod["hostPID"] and pod["hostNetwork"] for pod in pods)


def test_a_job_that_is_given_up_stays_so() -> None:
    """Exit code 93 fails the job at once, and that reason fails the JobSet; 94 only costs the node that is kept out."""
    jobset = by_kind()["JobSet"]["spec"]
    job = jobset["replicatedJobs"][0]["template"]["spec"]
    actions = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert actions == {GIVEN_UP_EXIT: "FailJob", ISOLATED_EXIT: "FailIndex"}
    containers = {container["name"] for container in job["template"]["spec"]["containers"]}
    assert {rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"][:2]} <= containers
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in jobset["failurePolicy"]["rules"]] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]


def test_the_last_step_has_its_time() -> None:
    """The trainers' grace ends before their agent kills them, and that before Kubernetes kills the pod."""
    options = agent_options()
    grace_s = train_gpt.parse(options.training_script_args).sigterm_grace_s
    job = by_kind()["JobSet"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert 0 < grace_s < options.shutdown_timeout < job["template"]["spec"]["terminationGracePeriodSeconds"]


def agent_options() -> Any:
    """What the trainers' container gives to `ckptd run`."""
    script = "\n".join(container_scripts(by_kind()["JobSet"]))
    line = next(words for words in commands(script) if words[:2] == ["ckptd", "run"])
    return launch.parser().parse_args(line[2:])
