"""The files in deploy/ and the Dockerfile: well formed, and saying of Infold what is so.

Nothing here starts a container. Files are held against their schemas, against each other, and against the settings,
pages and commands that we have.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from packaging.requirements import Requirement

from memory.environment import NAMES
from proxy.app import admin
from proxy.cli import cli
from proxy.config import Config, check_environment

TOP = Path(__file__).parent.parent
DEPLOY = TOP / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
WAYS = ("service", "sidecar")  # what people apply; `base` is a part of both
VERSIONS = ("1.30", "1.33", "1.37")  # of Kubernetes: the first with all that we use, a middle one, the newest
UID = 10_001
AFTER_DRAINING = 30  # seconds for what ends after the web workers

Json = dict[str, Any]


# Dockerfile


def dockerfile() -> list[tuple[str, str]]:
    """Instruction and arguments, continued lines in one, comments left out."""
    text = re.sub(r"^#.*\n", "", (TOP / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in text.splitlines() if line.strip()]


def last(instruction: str) -> str:
    return [rest for name, rest in dockerfile() if name == instruction][-1]


def image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for name, rest in dockerfile() if name == "ENV" for pair in shlex.split(rest))


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    program = Path(sys.executable).with_name("hadolint")
    said = subprocess.run([program, "--no-color", "Dockerfile"], cwd=TOP, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    wanted = [rest.split()[:-1] for name, rest in dockerfile() if name == "COPY" and not rest.startswith("--from")]
    copied = {source for sources in wanted for source in sources}
    let_in = {line[1:] for line in (TOP / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in
    assert not [name for name in copied if not (TOP / name).exists()]


def test_all_that_builds_the_wheel_is_installed_by_hash() -> None:
    """What `--no-build-isolation` needs, with what that needs."""
    taken = set(re.search(r"builds = /\^\(([\w|-]+)\)==/", (TOP / "Dockerfile").read_text())[1].split("|"))  # type: ignore[index]
    (backend,) = re.findall(r'requires = \["(\w+)==', (TOP / "pyproject.toml").read_text())
    assert taken == needed_by(backend)
    locked = set(re.findall(r"^([\w-]+)==", (TOP / "requirements.lock").read_text(), re.MULTILINE))
    assert taken <= locked


def needed_by(name: str) -> set[str]:
    from importlib.metadata import requires

    found = {name}
    for line in requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": "3.11", "extra": ""}):
            found |= needed_by(requirement.name)
    return found


def test_the_image_runs_as_a_normal_user_who_owns_the_volume() -> None:
    assert last("USER") == f"{UID}:{UID}"
    made = " ".join(rest for name, rest in dockerfile() if name == "RUN")
    assert f"useradd --uid {UID} --user-group" in made
    assert "install --directory --owner=infold --group=infold --mode=0700 /data" in made
    assert last("VOLUME") == last("WORKDIR") == image_environment()["INFOLD_DATA_DIR"] == "/data"


def test_the_image_serves_where_it_says() -> None:
    assert last("EXPOSE") == str(Config.model_fields["port"].default)
    assert yaml.safe_load(last("ENTRYPOINT")) == ["infold"]
    check_command(yaml.safe_load(last("CMD")))
    check_page(health_command()[-1])


def health_command() -> list[str]:
    command: list[str] = yaml.safe_load(last("HEALTHCHECK").partition(" CMD ")[2])
    return command


# What files say of Infold


def check_command(words: list[str]) -> None:
    """A command of `infold` that exists, with options that it has."""
    command = typer.main.get_command(cli).commands[words[0]]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


def check_page(text: str) -> None:
    """Every path behind our port is a page of ours."""
    paths = re.findall(rf"127\.0\.0\.1:{Config.model_fields['port'].default}(/\w+)", text)
    assert paths
    assert set(paths) <= {route.path for route in admin()}


def check_variables(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> Config:
    """Every name is one that Infold reads, and `infold` starts with these values; gives what it would go by."""
    from proxy.config import load

    ours = {name: value for name, value in variables.items() if name != "OPENAI_BASE_URL"}
    unknown = [
        name for name in ours if name not in NAMES and name.removeprefix("INFOLD_").lower() not in Config.model_fields
    ]
    assert not unknown
    for name in [*NAMES, *(name for name in os.environ if name.startswith("INFOLD_"))]:
        monkeypatch.delenv(name, raising=False)
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    check_environment(ours)
    return load()


# compose.yaml


@pytest.fixture(scope="module")
def compose() -> Json:
    text = (DEPLOY / "compose.yaml").read_text()
    content: Json = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))  # with nothing set in the shell
    return content


def test_compose_needs_nothing_to_be_set() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert re.findall(r"\$\{(\w+)[^}]*\}", text)
    assert not re.findall(r"\$(?!\{\w+:-[^}]+\}).*", text)


def test_compose_publishes_infold_on_this_machine_alone(compose: Json) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    port = Config.model_fields["port"].default
    assert published == {"infold": [f"127.0.0.1:{port}:{port}"]}


def test_compose_keeps_the_stores_on_a_network_without_a_way_out(compose: Json) -> None:
    assert compose["networks"]["stores"] == {"internal": True}
    reached = {name: service["networks"] for name, service in compose["services"].items()}
    assert reached == {
        "infold": ["outside", "stores"],
        "worker": ["stores"],
        "postgres": ["stores"],
        "valkey": ["stores"],
    }


def test_compose_pins_what_it_does_not_build(compose: Json) -> None:
    images = {name: service["image"] for name, service in compose["services"].items() if "build" not in service}
    assert images.keys() == {"postgres", "valkey"}
    assert not [image for image in images.values() if not re.search(r":\d+\.\d+\.\d+-", image)]
    built = [service for service in compose["services"].values() if "build" in service]
    assert not [service for service in built if not (DEPLOY / service["build"] / "Dockerfile").is_file()]


def test_compose_declares_the_volumes_and_networks_it_uses(compose: Json) -> None:
    volumes = {volume.partition(":")[0] for s in compose["services"].values() for volume in s.get("volumes", ())}
    networks = {network for s in compose["services"].values() for network in s["networks"]}
    assert volumes == compose["volumes"].keys()
    assert networks == compose["networks"].keys()


def test_compose_waits_for_services_that_have_a_health_check(compose: Json) -> None:
    services = compose["services"]
    for service in services.values():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert services[other]["healthcheck"]["test"]
    assert "depends_on" in services["infold"]
    assert "depends_on" in services["worker"]


@pytest.mark.parametrize("name", ["infold", "worker"])
def test_compose_sets_what_infold_reads(
    compose: Json, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service, postgres = compose["services"][name], compose["services"]["postgres"]["environment"]
    config = check_variables(service["environment"], monkeypatch, tmp_path)
    check_command(service.get("command", yaml.safe_load(last("CMD"))))
    user, password, database = (postgres[f"POSTGRES_{part}"] for part in ("USER", "PASSWORD", "DB"))
    assert config.database_url is not None
    assert config.database_url.get_secret_value() == f"postgresql://{user}:{password}@postgres:5432/{database}"
    assert config.job_worker is (name == "worker")
    assert "valkey" in service["environment"]["REDIS_URL"]


def test_compose_lets_infold_write_to_its_volume_and_to_memory(compose: Json) -> None:
    for name in ("infold", "worker"):
        service = compose["services"][name]
        writable = {entry.partition(":")[0] for entry in service["tmpfs"]}
        writable |= {volume.split(":")[1] for volume in service.get("volumes", ())}
        assert service["read_only"]
        assert writable == {"/data", "/tmp"}


def test_compose_gives_streams_time_to_end(compose: Json) -> None:
    minutes = int(compose["services"]["infold"]["stop_grace_period"].removesuffix("m"))
    assert minutes * 60 >= Config.model_fields["drain_seconds"].default + AFTER_DRAINING


# kubernetes/


def kustomized(folder: Path) -> list[Json]:
    """The objects of a folder and those it builds on, as they are written."""
    found = []
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        path = folder / name
        assert path.exists(), f"{folder.name} names {name}"
        found += kustomized(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    return found


def rendered(folder: Path) -> list[Json]:
    """The same as `kubectl kustomize` writes them."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl here")
    told = subprocess.run(["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True)
    return list(yaml.safe_load_all(told.stdout))


def kind_and_name(thing: Json) -> tuple[str, str]:
    return thing["kind"], thing["metadata"]["name"]


def check_schema(thing: Json, version: str) -> None:
    kubernetes_validate.validate(thing, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("way", WAYS)
def test_every_object_is_one_that_kubernetes_knows(way: str, version: str) -> None:
    for thing in kustomized(KUBERNETES / way):
        check_schema(thing, version)


@pytest.mark.parametrize("way", WAYS)
def test_kubectl_makes_the_same_objects_with_a_tag_and_the_replicas(way: str) -> None:
    written, made = kustomized(KUBERNETES / way), rendered(KUBERNETES / way)
    assert sorted(map(kind_and_name, made)) == sorted(map(kind_and_name, written))
    version = re.search(r'^version = "(.+)"', (TOP / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    for thing in made:
        check_schema(thing, VERSIONS[-1])
    assert {container["image"] for _, container in containers(made)} == {f"infold:{version[1]}"}


def test_a_schema_would_notice_a_misspelt_field() -> None:
    (thing,) = [thing for thing in kustomized(KUBERNETES / "service") if thing["kind"] == "Service"]
    with pytest.raises(kubernetes_validate.ValidationError):
        check_schema({**thing, "spec": {**thing["spec"], "selectors": {}}}, VERSIONS[-1])


def test_every_file_belongs_to_a_way() -> None:
    named = {folder / name for folder in KUBERNETES.iterdir() for name in resources(folder)}
    assert {path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml"} == {
        path for path in named if path.is_file()
    }


def resources(folder: Path) -> list[str]:
    content: Json = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert content.keys() <= {"apiVersion", "kind", "resources", "images", "replicas"}  # nothing to merge
    names: list[str] = content["resources"]
    return names


def pods(things: list[Json]) -> Iterator[Json]:
    return (thing["spec"]["template"]["spec"] for thing in things if thing["kind"] == "Deployment")


def containers(things: list[Json]) -> Iterator[tuple[Json, Json]]:
    """Pod and container, sidecars among them."""
    for pod in pods(things):
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            yield pod, container


def settings_of(things: list[Json]) -> dict[str, str]:
    (settings,) = [thing["data"] for thing in things if kind_and_name(thing) == ("ConfigMap", "infold-settings")]
    return dict(settings)


ALL = [pytest.param(way, id=way) for way in WAYS]


@pytest.mark.parametrize("way", ALL)
def test_containers_may_do_nothing_that_they_need_not(way: str) -> None:
    for pod, container in containers(kustomized(KUBERNETES / way)):
        security = {**pod["securityContext"], **container["securityContext"]}
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == (UID if container["name"] != "app" else UID + 1)
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["securityContext"]["fsGroup"] == UID
        assert pod["automountServiceAccountToken"] is False
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("way", ALL)
def test_a_service_called_infold_does_not_become_a_setting(way: str) -> None:
    """Kubernetes would set INFOLD_PORT=tcp://10.0.0.1:8808 in every pod of the namespace."""
    assert not [pod for pod in pods(kustomized(KUBERNETES / way)) if pod["enableServiceLinks"] is not False]


@pytest.mark.parametrize("way", ALL)
def test_pods_set_what_infold_reads_and_run_commands_that_exist(
    way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    things = kustomized(KUBERNETES / way)
    for _, container in containers(things):
        given = {entry["name"]: entry.get("value", "postgresql://u:p@h/d") for entry in container["env"]}
        if container["name"] == "app":
            assert given == {"OPENAI_BASE_URL": f"http://127.0.0.1:{Config.model_fields['port'].default}/v1"}
            continue
        check_command(container["args"])
        config = check_variables(settings_of(things) | given, monkeypatch, tmp_path)
        assert config.job_worker is not (way == "service" and container["args"][0] == "serve")


@pytest.mark.parametrize("way", ALL)
def test_secrets_stay_in_secrets(way: str) -> None:
    for _, container in containers(kustomized(KUBERNETES / way)):
        for entry in container["env"]:
            assert ("valueFrom" in entry) is (entry["name"] == "DATABASE_URL")
    assert not [thing for thing in kustomized(KUBERNETES / way) if thing["kind"] == "Secret"]


@pytest.mark.parametrize("way", ALL)
def test_mounts_are_volumes_of_the_pod(way: str) -> None:
    for pod, container in containers(kustomized(KUBERNETES / way)):
        there = {volume["name"] for volume in pod["volumes"]}
        mounted = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", ())}
        assert set(mounted.values()) <= there
        assert container["name"] == "app" or "/tmp" in mounted
        assert container.get("args", [""])[0] != "serve" or "/data" in mounted


@pytest.mark.parametrize("way", ALL)
def test_pods_have_time_for_the_longest_stream(way: str) -> None:
    things = kustomized(KUBERNETES / way)
    drain = float(settings_of(things)["INFOLD_DRAIN_SECONDS"])
    for pod, container in containers(things):
        if container.get("args", [""])[0] == "serve":
            waiting = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            assert pod["terminationGracePeriodSeconds"] >= drain + waiting + AFTER_DRAINING


def test_the_service_reaches_the_port_and_the_probes_ask_pages_of_ours() -> None:
    things = kustomized(KUBERNETES / "service")
    found = {kind_and_name(thing): thing for thing in things}
    web, service = found["Deployment", "infold"], found["Service", "infold"]
    (container,) = web["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert port == {"name": "http", "containerPort": Config.model_fields["port"].default}
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    labels = web["spec"]["template"]["metadata"]["labels"]
    for selector in (
        web["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        found["PodDisruptionBudget", "infold"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector == labels
    worker = found["Deployment", "infold-worker"]["spec"]["template"]["metadata"]["labels"]
    assert worker != labels
    asked = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert asked == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    assert set(asked.values()) <= {route.path for route in admin()}


def test_the_sidecar_starts_before_the_app_listens_on_loopback_and_asks_as_the_image_does() -> None:
    (pod,) = pods(kustomized(KUBERNETES / "sidecar"))
    (sidecar,) = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["args"] == ["serve", "--host", "127.0.0.1"]
    assert "ports" not in sidecar
    for probe in ("startupProbe", "livenessProbe"):
        assert sidecar[probe]["exec"]["command"] == health_command()
