"""Docker Compose files: `services:` of containers on one machine.

Written after the Compose Specification (services, interpolation, `.env` and `env_file` syntax).
A `count: N` of GPUs means the first N of the machine: the NVIDIA runtime of Docker numbers them
0 ... N-1, so that two services with `count: 1` share GPU 0.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from moesize.check.formats import Context, Format
from moesize.check.readers.compose_build import Build, read_dockerfile
from moesize.check.readers.compose_words import (
    MOST_FILLED,
    Filler,
    read_env_file,
    split_command,
)
from moesize.check.readers.engine_config import engine_of_flags, options_of
from moesize.check.readers.pods import is_helper, nim_program
from moesize.check.server import Reading, Server, Stated
from moesize.check.shell import launches_of
from moesize.check.source import SourceText, Word
from moesize.check.yaml_tree import ABSENT, Node

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from moesize.check.shell import Launch

_MOST_SERVICES = 500
_MOST_WORDS = 8_192
_DEEPEST = 16
_BYTES = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s{0,3}([bkmgtp]?)(i?b)?", re.IGNORECASE)
# What repositories keep beside the file when the .env itself is private.
_EXAMPLES = (".env.example", ".env.sample", ".env.template", ".env.dist", "example.env")
_BASE_FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")


# --- services ---------------------------------------------------------------------------------


class _Service:
    """A service: its own mapping first, then those that it extends."""

    def __init__(self, name: Word, layers: Sequence[Node], filler: Filler) -> None:
        self.name = name
        self.layers = layers
        self.filler = filler

    def get(self, *path: str) -> Node:
        """The value at a path, of the first layer that has one."""
        for layer in self.layers:
            found = layer.get(*path)
            if found:
                return found
        return ABSENT

    def word(self, *path: str) -> Word | None:
        """A scalar with its variables filled in."""
        return self.filler.word(self.get(*path))

    def words(self, key: str) -> tuple[list[Word], dict[Word, SourceText]] | None:
        """`command` or `entrypoint`: its words, and those that may be shell texts."""
        node = self.get(key)
        texts: dict[Word, SourceText] = {}
        found: list[Word] = []
        read: list[tuple[Word, SourceText]] = []
        if node.is_sequence:
            for element in node.elements()[:_MOST_WORDS]:
                filled = self.filler.node(element)
                if filled is not None:
                    read.append((filled.word(), filled.text))
        else:
            filled = self.filler.node(node)
            if filled is None:
                return None
            read = split_command(filled)
        for word, text in read:
            found.append(word)
            if any(char.isspace() for char in word):
                texts[word] = text
        return found, texts

    def environment(self, context: Context) -> dict[str, Word]:
        """What the container sees: files first, then the entries of the service."""
        found: dict[str, Word] = {}
        for name in self.env_files():
            source = context.folder.read(name)
            if source is not None:
                found.update(read_env_file(source, found))
        for layer in reversed(self.layers):
            found.update(self.entries(layer.get("environment")))
        return found

    def env_files(self) -> list[str]:
        node = self.get("env_file")
        names: list[str] = []
        for element in node.elements() if node.is_sequence else [node]:
            word = self.filler.word(element.get("path") if element.is_mapping else element)
            if word:
                names.append(str(word))
        return names[:50]

    def entries(self, node: Node) -> dict[str, Word]:
        """`environment` as a mapping or as a list of NAME=value."""
        found: dict[str, Word] = {}
        for key, value in node.items():
            word = self.filler.word(value)
            word = word if word is not None else self.filler.lookup(key)
            if word is not None:
                found[str(key)] = word
        for element in node.elements():
            filled = self.filler.node(element)
            if filled is None:
                continue
            text = filled.text.value
            equals = text.find("=")
            if equals > 0:
                found[text[:equals].strip()] = filled.word(equals + 1, len(text))
            elif equals < 0:
                given = self.filler.lookup(text.strip())
                if given is not None:
                    found[text.strip()] = given
        return found

    @property
    def profiles(self) -> frozenset[str]:
        """Profiles that start it; empty: it always runs."""
        names = {str(word) for word in self.get("profiles").words()}
        return frozenset() if "" in names else frozenset(names)


def _services(document: Node, context: Context, filler: Filler) -> list[_Service]:
    found: list[_Service] = []
    base = _base_services(document, context)
    for name, node in document.get("services").items():
        if len(found) >= _MOST_SERVICES:
            break
        if not node.is_mapping:
            continue
        layers = _layers(node, document, context, filler)
        if not any(layer.get("image") or layer.get("build") for layer in layers):
            under = base.get(str(name))
            if under.is_mapping:
                layers += _layers(under, document, context, filler)
        found.append(_Service(name, layers, filler))
    return found


def _base_services(document: Node, context: Context) -> Node:
    """Services of the main file beside an override file, which only adds to them."""
    nodes = [node for _, node in document.get("services").items()]
    if all(node.get("image") or node.get("build") for node in nodes):
        return ABSENT
    for name in _BASE_FILES:
        for other in context.folder.yaml(name):
            if other is not document and other.get("services").is_mapping:
                return other.get("services")
    return ABSENT


def _layers(node: Node, document: Node, context: Context, filler: Filler) -> list[Node]:
    """A service and what it extends, nearest first."""
    layers = [node]
    services = document.get("services")
    while len(layers) < _DEEPEST:
        extends = layers[-1].get("extends")
        name = filler.word(extends.get("service") if extends.is_mapping else extends)
        if not name:
            break
        file = filler.word(extends.get("file"))
        if file:
            others = context.folder.yaml(str(file))
            services = others[0].get("services") if others else ABSENT
        following = services.get(str(name))
        if not following.is_mapping or any(following is layer for layer in layers):
            break
        layers.append(following)
    return layers


# --- what a service may use -------------------------------------------------------------------


class _Devices(NamedTuple):
    """GPUs that a service gets.

    number  None with a vendor: all of the machine; None without one: none are asked for
    ids     which of them
    """

    number: Stated[int] | None
    ids: tuple[str, ...]
    vendor: str


def _devices(service: _Service, environment: Mapping[str, Word]) -> _Devices:
    given = _reserved(service)
    visible = _visible(environment, service)
    if given is None:
        if visible is not None:
            return _Devices(visible[0], visible[1], _vendor(service))
        return _Devices(None, (), "")
    if visible is None or visible[0] is None:
        return given
    # Numbers inside the container count what it was given.
    ids = visible[1]
    if given.ids:
        ids = tuple(
            given.ids[int(each)]
            for each in visible[1]
            if each.isdigit() and len(each) < 4 and int(each) < len(given.ids)
        )
    if given.number is not None and given.number.value < visible[0].value:
        return given
    return _Devices(visible[0], ids, given.vendor)


def _reserved(service: _Service) -> _Devices | None:
    """GPUs of `deploy.resources.reservations` or `gpus`; None: none are asked for."""
    requests = service.get("deploy", "resources", "reservations", "devices").elements()
    gpus = service.get("gpus")
    if gpus.is_sequence:
        requests = [*requests, *gpus.elements()]
    elif gpus.text is not None:
        return _counted(service.filler.word(gpus), _vendor(service))
    for request in requests:
        if not request.is_mapping or not _is_gpu(request, service):
            continue
        driver = (service.filler.word(request.get("driver")) or Word("")).lower()
        vendor = "amd" if "amd" in driver else _vendor(service)
        ids = [service.filler.word(each) for each in request.get("device_ids").elements()]
        named = [word for word in ids if word]
        if named:
            if any(word.endswith("=all") or word == "all" for word in named):
                return _Devices(None, (), vendor)
            number = Stated(len(named), _not_a_number(named[0]))
            if any("$" in word for word in named):
                return _Devices(number, (), vendor)
            return _Devices(number, tuple(map(_device, named)), vendor)
        return _counted(service.filler.word(request.get("count")), vendor)
    generic = service.get("deploy", "resources", "reservations", "generic_resources")
    for element in generic.elements():
        spec = element.get("discrete_resource_spec")
        if "gpu" in spec.get("kind").word.lower():
            return _counted(service.filler.word(spec.get("value")), _vendor(service))
    for element in service.get("devices").elements():
        word = service.filler.word(element) or Word("")
        name, has, device = word.partition("=")
        if has and name.endswith(("nvidia.com/gpu", "amd.com/gpu")):
            vendor = name.partition(".")[0]
            return (
                _Devices(None, (), vendor)
                if device == "all"
                else _Devices(Stated(1, _not_a_number(word)), (device,), vendor)
            )
        if word.startswith("/dev/kfd"):
            return _Devices(None, (), "amd")
    return None


def _not_a_number(word: Word) -> Word:
    """A word that implies a number of GPUs: it cannot be replaced by another number."""
    return Word(word, word.span)


def _device(word: Word) -> str:
    """`0` of `0` and of the CDI name `nvidia.com/gpu=0`."""
    return word.rpartition("=")[2]


def _counted(word: Word | None, vendor: str) -> _Devices:
    """`count`: a number, or all."""
    if word is None or not word.strip().isdigit() or len(word.strip()) > 4:
        return _Devices(None, (), vendor)
    count = int(word)
    return _Devices(Stated(count, word), tuple(map(str, range(count))), vendor)


def _is_gpu(request: Node, service: _Service) -> bool:
    names = [service.filler.word(each) or "" for each in request.get("capabilities").elements()]
    flat = [str(name).lower() for name in names]
    for element in request.get("capabilities").elements():
        flat += [str(word).lower() for word in element.words()]
    driver = str(service.filler.word(request.get("driver")) or "").lower()
    return any("gpu" in name for name in flat) or driver in ("nvidia", "cdi", "amd")


def _visible(
    environment: Mapping[str, Word], service: _Service
) -> tuple[Stated[int] | None, tuple[str, ...]] | None:
    """GPUs that variables let the container see; None: they say nothing."""
    runtime = str(service.word("runtime") or "")
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        word = environment.get(name)
        if word is None or "$" in word:
            continue
        ids = tuple(part.strip() for part in word.split(",") if part.strip())
        if ids[:1] in (("void",), ("none",), ("-1",)):
            return Stated(0, _not_a_number(word)), ()
        if not ids or ids == ("all",):
            continue
        if name == "NVIDIA_VISIBLE_DEVICES" and runtime != "nvidia":
            # The image's own setting wins over a reservation only under that runtime.
            continue
        return Stated(len(ids), _not_a_number(word)), ids
    return (None, ()) if runtime in ("nvidia", "amd") else None


def _vendor(service: _Service) -> str:
    image = str(service.word("image") or "").lower()
    if "rocm" in image or service.word("runtime") == "amd":
        return "amd"
    if "gaudi" in image or "hpu" in image or service.word("runtime") == "habana":
        return "intel"
    return "nvidia"


def _bytes(word: Word | None) -> Stated[int] | None:
    """`16g`, `64mb`, `2GiB`: powers of 1024."""
    if word is None or len(word) > 30:
        return None
    match = _BYTES.fullmatch(word.strip())
    if match is None:
        return None
    exponent = " kmgtp".index(match[2].lower()) if match[2] and match[2].lower() != "b" else 0
    return Stated(int(float(match[1]) * 1024**exponent), word)


def _shared_memory(service: _Service) -> tuple[Stated[int] | None, bool]:
    """/dev/shm: its size, and whether it is the 64 MiB of the container runtime."""
    ipc = str(service.word("ipc") or "")
    stated = _bytes(service.word("shm_size"))
    if ipc in ("host", "shareable") or ipc.startswith(("service:", "container:")):
        return (None, False) if ipc != "shareable" else (stated, stated is None)
    if stated is not None:
        return stated, False
    for element in service.get("volumes").elements():
        if element.is_mapping:
            if service.filler.word(element.get("target")) == "/dev/shm":
                return _bytes(service.filler.word(element.get("tmpfs", "size"))), False
        elif ":/dev/shm" in (service.filler.word(element) or ""):
            return None, False
    tmpfs = service.get("tmpfs")
    for element in tmpfs.elements() or [tmpfs]:
        word = service.filler.word(element) or Word("")
        if word.partition(":")[0] == "/dev/shm":
            size = word.find("size=")
            return (_bytes(word.cut(size + 5)) if size >= 0 else None), False
    return None, True


# --- servers ----------------------------------------------------------------------------------


def _is_compose(document: Node) -> bool:
    if document.get("apiVersion") or document.get("kind"):
        return False
    known = ("image", "build", "extends", "command", "entrypoint", "deploy", "container_name")
    return any(any(node.get(key) for key in known) for _, node in document.get("services").items())


def _read(document: Node, context: Context) -> Reading:
    filler, notes = _filler(context)
    reading = Reading(kind="docker_compose")
    services = _services(document, context, filler)
    pulled = _pulled_models(services)
    for service in services:
        for server in _servers(service, context, pulled):
            server.notes = (*server.notes, *notes) if _uses_variables(service) else server.notes
            reading.servers.append(server)
    _share(reading.servers, {str(each.name): each.profiles for each in services}, context.path)
    if not reading.servers:
        reading.skipped = "no service runs a model server"
    elif all(server.skipped for server in reading.servers):
        reading.skipped = reading.servers[0].skipped
    return reading


def _filler(context: Context) -> tuple[Filler, tuple[str, ...]]:
    """The variables of a compose file: what the user gives, then `.env` beside it."""
    given = {name: Word(value) for name, value in context.variables.items()}
    notes: tuple[str, ...] = ()
    source = context.folder.read(".env")
    if source is None:
        for name in _EXAMPLES:
            source = context.folder.read(name)
            if source is not None:
                notes = (f"there is no .env: variables are those of {name}",)
                break
    known = {} if source is None else read_env_file(source, given)

    def lookup(name: str) -> Word | None:
        found = given.get(name)
        return found if found is not None else known.get(name)

    return Filler(lookup), notes


def _uses_variables(service: _Service) -> bool:
    """Whether any word of the service is a variable."""
    nodes = [service.get(key) for key in ("image", "command", "entrypoint", "environment")]
    return any("$" in word for node in nodes for word in _scalars(node))


def _scalars(node: Node) -> Iterable[Word]:
    yield from node.words()
    for _, value in node.items():
        yield from value.words()


def _servers(
    service: _Service, context: Context, pulled: Mapping[str, Sequence[Word]]
) -> Iterator[Server]:
    environment = service.environment(context)
    image = service.word("image")
    build = _build(service, context)
    if image is None and build is not None:
        image = build.image
    entry, command = service.words("entrypoint"), service.words("command")
    if build is not None:
        environment = {**build.environment, **environment}
        if entry is None:
            command = command or build.command
            entry = build.entry
    words = [*(entry[0] if entry else []), *(command[0] if command else [])]
    texts = {**(entry[1] if entry else {}), **(command[1] if command else {})}
    if is_ollama(image) if image is not None else _is_named(service, "ollama"):
        yield from _ollama(service, environment, image, words, texts, pulled)
        return
    if image is not None and is_helper(image):
        return
    launches = launches_of(
        words, environment, image=None if entry and entry[0] else image, texts=texts
    )
    nim = nim_program(image, environment) if image is not None else None
    if nim is not None and not any(launch.engine != "nim" for launch in launches):
        yield _with_machine(
            Server(
                name=str(service.name),
                place=service.name,
                engine="nim",
                words=nim.words,
                environment=environment,
                image=image,
                model=nim.model,
                skipped=nim.skipped,
            ),
            service,
        )
        return
    for number, launch in enumerate(launches):
        server = _server(service, launch, image, number)
        server.words = (*_option_file(server, service, context), *server.words)
        server.fallback_model = _evidence(server, service)
        yield server
    if not launches and image is not None and words and words[0].startswith("-"):
        guessed = _by_flags(service, environment, image, words)
        if guessed is not None:
            yield guessed


def _server(service: _Service, launch: Launch, image: Word | None, number: int) -> Server:
    name = str(service.name) if number == 0 else f"{service.name} ({number + 1})"
    return _with_machine(
        Server(
            name=name,
            place=service.name,
            engine=launch.engine,
            words=launch.words,
            environment=dict(launch.environment),
            image=launch.image or image,
            unresolved=launch.unresolved,
        ),
        service,
    )


def _with_machine(server: Server, service: _Service) -> Server:
    """What the service may use of the machine."""
    devices = _devices(service, server.environment)
    server.gpus_per_node = devices.number
    server.device_ids = devices.ids
    server.vendor = devices.vendor
    server.shm, server.shm_is_default = _shared_memory(service)
    server.memory_limit = _bytes(service.word("deploy", "resources", "limits", "memory")) or _bytes(
        service.word("mem_limit")
    )
    if not devices.vendor and _for_processors(server):
        server.skipped = server.skipped or "runs on the processor: it asks for no GPU"
    return server


def _for_processors(server: Server) -> bool:
    """Whether a server without GPUs is meant to run on the processor."""
    image = str(server.image or "").lower()
    if server.engine in ("ollama", "llama.cpp"):
        return not any(word in image for word in ("cuda", "rocm", "vulkan", "musa", "intel"))
    return "cpu" in image.rpartition("/")[2]


def _share(servers: list[Server], profiles: Mapping[str, frozenset[str]], path: str) -> None:
    """Services of a file run beside each other, unless no profile starts both."""
    for server in servers:
        server.shares_with = f"compose:{path}"
    apart = [server for server in servers if profiles.get(str(server.place))]
    names = [profiles[str(server.place)] for server in apart]
    if len(set(names)) > 1 and sum(map(len, set(names))) == len(frozenset().union(*names)):
        for server, own in zip(apart, names, strict=True):
            if names.count(own) == 1:
                server.exclusive = server.exclusive or f"compose:{path}:profiles"


# --- images that need more than a command line ------------------------------------------------


def is_ollama(image: str) -> bool:
    """Whether an image runs Ollama."""
    name = image.partition("@")[0].rpartition("/")[2].partition(":")[0].lower()
    return name in ("ollama", "ollama-rocm")


def _is_named(service: _Service, name: str) -> bool:
    names = [service.name, service.word("container_name"), service.word("hostname")]
    return bool(service.get("build")) and name in [str(each).lower() for each in names if each]


_PULL = re.compile(r"\bollama\s{1,8}(?:pull|run)\s{1,8}([A-Za-z0-9][\w./:-]{0,120})")


def _ollama(
    service: _Service,
    environment: dict[str, Word],
    image: Word | None,
    words: Sequence[Word],
    texts: Mapping[Word, SourceText],
    pulled: Mapping[str, Sequence[Word]],
) -> Iterator[Server]:
    own = _models_in(words, texts)
    if own and not any("serve" in word for word in words):
        return  # pulls models for the server beside it
    models = own or [word for found in pulled.values() for word in found]
    for number, model in enumerate([*models[:8]] or [None]):
        server = Server(
            name=str(service.name) if number == 0 else f"{service.name} ({model})",
            place=service.name,
            engine="ollama",
            environment=environment,
            image=image,
            model=model,
            exclusive=f"ollama:{service.name}" if len(models) > 1 else "",
            skipped="" if model else "Ollama's models are pulled while it runs: none is named here",
        )
        yield _with_machine(server, service)


def _models_in(words: Sequence[Word], texts: Mapping[Word, SourceText]) -> list[Word]:
    """Models of `ollama pull NAME`, in a shell text or as words of a command."""
    found: list[Word] = []
    for word in words:
        source = texts.get(word)
        if source is not None and "ollama" in word:
            found += [source.word(*match.span(1)) for match in _PULL.finditer(source.value)]
    for verb, name in pairwise(words):
        if verb in ("pull", "run") and name and not name.startswith("-"):
            found.append(name)
    return list(dict.fromkeys(found))


def _pulled_models(services: Sequence[_Service]) -> dict[str, list[Word]]:
    """Models that helper services pull for the Ollama of the file."""
    found: dict[str, list[Word]] = {}
    for service in services:
        image = service.word("image")
        if image is None or not is_ollama(image):
            continue
        words: list[Word] = []
        texts: dict[Word, SourceText] = {}
        for key in ("entrypoint", "command"):
            read = service.words(key)
            if read is not None:
                words += read[0]
                texts.update(read[1])
        if not any("serve" in word for word in words):
            models = _models_in(words, texts)
            if models:
                found[str(service.name)] = models
    return found


_OPTION_FLAGS = ("--config", "--extra-llm-api-options", "--extra_llm_api_options")


def _option_file(server: Server, service: _Service, context: Context) -> tuple[Word, ...]:
    """Flags of the options file that a server is given, where a volume brings it from here."""
    path = ""
    for word, following in pairwise((*server.words, Word(""))):
        name, equals, value = word.partition("=")
        if name in _OPTION_FLAGS:
            path = value if equals else str(following)
    here = _from_here(path, service) if path.startswith("/") else ""
    if not here or server.engine is None:
        return ()
    found = options_of(context.folder.yaml(here), server.engine)
    return found.words if found is not None else ()


def _from_here(path: str, service: _Service) -> str:
    """The file of the host, relative to the compose file, that a container sees at a path."""
    for source, target in _volumes(service):
        if not source.startswith("."):
            continue
        if path == target:
            return str(source)
        if path.startswith(target + "/"):
            return f"{source.rstrip('/')}/{path[len(target) + 1 :]}"
    return ""


def _volumes(service: _Service) -> Iterator[tuple[Word, str]]:
    """Paths of the host, and where the container sees them."""
    for element in service.get("volumes").elements()[:_MOST_SERVICES]:
        if element.is_mapping:
            source = service.filler.word(element.get("source"))
            target = str(service.filler.word(element.get("target")) or "")
        else:
            whole = service.filler.word(element) or Word("")
            path, _, rest = whole.partition(":")
            source, target = whole.cut(0, len(path)), rest.partition(":")[0]
        if source and target.startswith("/"):
            yield source, target.rstrip("/")


# Folders that are called after no model.
_ANY_FOLDER = ("", "cache", "data", "huggingface", "hf", "hub", "llm", "llms", "model", "models")


def _evidence(server: Server, service: _Service) -> Word | None:
    """What a model that is loaded from a path may be: by its folder on the host, by its name."""
    from moesize.engine_args import read_engine_words

    if server.engine is None:
        return None
    read = read_engine_words(
        server.engine, server.words, env=dict(server.environment), lenient=True
    )
    path = (read.model or "").rstrip("/")
    if not path.startswith(("/", "./")):
        return None
    for source, target in _volumes(service):
        name = source.rstrip("/").rpartition("/")[2]
        if path == target and name.lower() not in _ANY_FOLDER and not name.startswith((".", "$")):
            return source.becomes(name)
    for word, following in pairwise(server.words):
        if word.replace("_", "-") == "--served-model-name" and not following.startswith("-"):
            return following
    return None


def _by_flags(
    service: _Service, environment: dict[str, Word], image: Word, words: Sequence[Word]
) -> Server | None:
    """An image whose name tells nothing, by flags that only one engine has."""
    names = [str(word.partition("=")[0]) for word in words if word.startswith("--")]
    engine = engine_of_flags(names)
    if engine is None:
        return None
    server = Server(
        name=str(service.name),
        place=service.name,
        engine=engine,
        words=tuple(words),
        environment=environment,
        image=image,
        notes=(f"taken for {engine}, whose flags these are; the image does not tell",),
    )
    return _with_machine(server, service)


def _build(service: _Service, context: Context) -> Build | None:
    """The Dockerfile in the build context of a service, where it lies below the root."""
    node = service.get("build")
    folder = service.filler.word(node.get("context") if node.is_mapping else node) or ""
    name = service.filler.word(node.get("dockerfile")) or "Dockerfile"
    if not node or "://" in folder or len(folder) + len(name) > 400:
        return None
    source = context.folder.read(f"{folder or '.'}/{name}")
    if source is None or len(source.value) > MOST_FILLED:
        return None
    return read_dockerfile(source, service.entries(node.get("args")))


FORMATS = [Format("docker_compose", _is_compose, _read)]
