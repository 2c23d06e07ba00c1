"""The one home of transformers: loads models, tokenizers and image processors, and checks them.

transformers has broken encoders without a word before: embeddings that stayed zero, or were taken from
another tensor. So what is loaded is compared with the files.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal, TypeVar

import torch

from latentcache.core.machine import install_command
from latentcache.encoders.pretrained.complete import check_complete
from latentcache.encoders.pretrained.files import Component
from latentcache.errors import ConfigError, EncoderError

_Loaded = TypeVar("_Loaded")
#: What transformers raises for files that are damaged, incomplete or of another class.
_MISFIT = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError)
#: The first version of transformers that is used.
_SINCE = 5
#: The method of transformers' models that fills tensors that files lack.
_FILL = "_initialize_missing_keys"
#: Tokens of a text of which hidden states are counted: enough for models that shorten texts.
_NUM_COUNTED = 16
#: What the input embedding is called in checkpoints, without the way to it.
_EMBEDDINGS = (
    "shared.weight",
    "embed_tokens.weight",
    "token_embedding.weight",
    "word_embeddings.weight",
)
#: Classes whose checkpoints hold another one's weights, among others.
_WHOLE: Mapping[str, tuple[str, ...]] = {
    "T5EncoderModel": ("T5ForConditionalGeneration", "T5Model"),
    "UMT5EncoderModel": ("UMT5ForConditionalGeneration", "UMT5Model"),
    "LlamaModel": ("LlamaForCausalLM",),
    "CLIPTextModel": ("CLIPModel", "CLIPTextModelWithProjection"),
    "CLIPVisionModel": ("CLIPModel", "CLIPVisionModelWithProjection"),
    "SiglipVisionModel": ("SiglipModel",),
    "Wav2Vec2Model": ("Wav2Vec2ForCTC", "Wav2Vec2ForPreTraining"),
}
#: An embedding of which less than this part has tokens belongs to another tokenizer: T5's has an eighth of
#: umT5's. The largest padding of a published model is 0.3 %.
_LEAST_USED = 0.5


def versions(*packages: str) -> dict[str, str]:
    """Return the version of transformers, and those of other packages that values depend on."""
    return {name: importlib.metadata.version(name) for name in ("transformers", *packages)}


def load_tokenizer(component: Component) -> Any:
    """Load a tokenizer, by the class that model_index.json names. Raises EncoderError."""
    name = component.class_name or ""
    # Processors hold a tokenizer beside an image processor, which texts do not need.
    loader = _class(name if "Tokenizer" in name else "AutoTokenizer")
    return _loading(
        component, lambda: loader.from_pretrained(str(component.folder), local_files_only=True)
    )


def load_image_processor(component: Component) -> Any:
    """Load an image processor, by the class that model_index.json names. Raises EncoderError.

    transformers runs it on torchvision if that is installed, and on PIL if not.
    """
    name = component.class_name or ""
    loader = _class(name if "ImageProcessor" in name else "AutoImageProcessor")
    return _loading(
        component, lambda: loader.from_pretrained(str(component.folder), local_files_only=True)
    )


def load_feature_extractor(component: Component) -> Any:
    """Load what prepares sound for a model, by the class that its file names. Raises EncoderError."""
    loader = _class("AutoFeatureExtractor")
    return _loading(
        component, lambda: loader.from_pretrained(str(component.folder), local_files_only=True)
    )


def load_config(component: Component, kind: Literal["text", "vision", "audio", "whole"]) -> Any:
    """Load the config of a text, vision or audio model, with what its class adds to the file.

    Models of several kinds of input keep it inside theirs, which is the whole. Raises ConfigError and
    EncoderError.
    """
    component.config()  # raises where it is missing
    loader = _class("AutoConfig")
    config = _loading(
        component, lambda: loader.from_pretrained(str(component.folder), local_files_only=True)
    )
    return config.get_text_config() if kind == "text" else getattr(config, f"{kind}_config", config)


def number_of(component: Component, config: Any, key: str) -> int:
    """Return a number of a config. Raises ConfigError if it has none."""
    value = getattr(config, key, None)
    if isinstance(value, int):
        return value
    raise ConfigError(
        f"{component.name}: the config.json in {component.folder} has no number {key}, which says what "
        "shape the states have. Name the folder of a model that has it."
    )


def class_of(component: Component, known: tuple[str, ...]) -> str:
    """Return the model class of a component: one of `known`. Raises ConfigError."""
    names = component.config().get("architectures")
    named = str(names[0]) if isinstance(names, list) and len(names) == 1 else None
    found = component.class_name or named
    found = next((part for part in known if found in _WHOLE.get(part, ())), found)
    if found not in known:
        raise ConfigError(
            f"{component.name}: {component.folder} holds a {found}, and this family runs "
            f"{' or '.join(known)}. Another class gives other states: name the folder of the right model."
        )
    return found


def load_model(
    component: Component, class_name: str, *, dtype: torch.dtype, device: torch.device
) -> Any:
    """Load a model for inference: frozen, in eval mode, its embedding that of the file.

    Raises EncoderError, also if tensors would stay random, other than the component's `unused`, and if
    the config leaves out parts of the weights.
    """
    loader = _class(class_name)
    with _quiet():
        model, info = _loading(
            component,
            lambda: loader.from_pretrained(
                str(component.folder),
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                variant=component.variant,
                ignore_mismatched_sizes=True,  # they are refused below, and named
                output_loading_info=True,
            ),
        )
    check_complete(component, model, info)
    _check_embedding(component, model)
    return model.to(device).eval().requires_grad_(False)


def check_weights(component: Component, class_name: str) -> None:
    """Raise EncoderError if weights are another model's, as `load_model` would. Reads headers only.

    Those of quantized models are left to `load_model`: reading them may take tensors' values, and
    packages that only the machines that encode have.
    """
    loader = _class(class_name)
    if _is_quantized(component.config()):
        return
    loader = _without_filling(loader)
    # One number stands for each tensor. transformers renames, joins and takes them as the tensors.
    number = torch.zeros((), dtype=torch.bfloat16)
    tensors = {name: number.expand(shape) for name, shape in component.shapes().items()}
    with _quiet():
        model, info = _loading(
            component,
            lambda: loader.from_pretrained(
                None,
                config=str(component.folder),
                state_dict=tensors,
                dtype=number.dtype,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            ),
        )
    check_complete(component, model, info)


def parameter_shapes(component: Component, class_name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's parameters by name, as its config says. Raises EncoderError."""
    model = _without_memory(component, class_name)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def count_states(component: Component, class_name: str) -> int | None:
    """Return how many hidden states a text model of a config gives, None if only its weights can tell.

    Raises EncoderError if it cannot be built.
    """
    model = _without_memory(component, class_name)
    ids = torch.zeros(1, _NUM_COUNTED, dtype=torch.int64, device="meta")
    # Values that a model looks at are not there.
    with contextlib.suppress(LookupError, AttributeError, TypeError, ValueError, RuntimeError):
        return len(model(input_ids=ids, output_hidden_states=True).hidden_states)
    return None


def _without_memory(component: Component, class_name: str) -> Any:
    """Build a model of a config whose parameters have shapes and no values. Raises EncoderError."""
    loader = _class(class_name)

    def build() -> Any:
        config = loader.config_class.from_pretrained(str(component.folder), local_files_only=True)
        with torch.device("meta"):
            return loader(config).eval()

    with _quiet():
        return _loading(component, build)


def _without_filling(loader: Any) -> Any:
    """Return a class of transformers that leaves tensors that files lack as they are.

    It would fill them at random, which takes a large model's memory and minutes. What it says of the
    loading is the same. A class that does not say how it fills them is returned as it is.
    """
    if not hasattr(loader, _FILL):
        return loader
    # Messages say the name, and transformers looks its own classes up in their modules.
    same = {"__module__": loader.__module__, "__doc__": loader.__doc__}
    return type(loader.__name__, (loader,), {**same, _FILL: _do_nothing})


def _do_nothing(_model: Any, *_args: Any, **_kwargs: Any) -> None:
    """Stand in for a method."""


def _is_quantized(config: Mapping[str, Any]) -> bool:
    inner = config.get("text_config")
    sections = (config, inner) if isinstance(inner, dict) else (config,)
    return any(section.get("quantization_config") for section in sections)


def check_vocabulary(
    component: Component, tokenizer: Any, rows: int, *, padded: bool = True
) -> None:
    """Raise ConfigError unless a tokenizer's vocabulary fits an embedding of `rows`.

    padded: whether published embeddings of this kind are about as large as their vocabularies.
    """
    size = len(tokenizer)
    if size <= rows and (not padded or size >= _LEAST_USED * rows):
        return
    raise ConfigError(
        f"{component.name}: the tokenizer in {component.folder} has {size} tokens, and the model's "
        f"embedding has {rows}. It is another model's tokenizer, and its ids would mean other "
        "words. Name the folder of the model's own."
    )


def check_special_ids(
    component: Component, tokenizer: Any, config: Mapping[str, Any], names: Collection[str]
) -> None:
    """Raise ConfigError if special ids of a tokenizer differ from those that config.json says.

    names: of `bos`, `eos` and `pad`, those that the states depend on.
    """
    inner = config.get("text_config")
    said = {**config, **inner} if isinstance(inner, dict) else config
    for name in names:
        found, expected = getattr(tokenizer, f"{name}_token_id"), said.get(f"{name}_token_id")
        allowed = expected if isinstance(expected, list) else [expected]
        if found is not None and expected is not None and found not in allowed:
            raise ConfigError(
                f"{component.name}: the tokenizer in {component.folder} has the {name} id {found}, and the "
                f"model's config says {expected}. It is another model's tokenizer. Name the folder of the "
                "model's own."
            )


def _check_embedding(component: Component, model: Any) -> None:
    """Raise EncoderError if a text model's embedding is zero, or is not the file's.

    A model of images has none, nor has one of sound.
    """
    table: Any = None
    with contextlib.suppress(NotImplementedError):
        table = getattr(model, "get_input_embeddings", lambda: None)()
    if not isinstance(table, torch.nn.Embedding):
        return
    loaded = table.weight.detach()
    stored = component.tensors_named(_EMBEDDINGS)
    same = not stored or any(
        tensor.shape == loaded.shape and torch.equal(tensor.to(loaded.dtype), loaded)
        for tensor in stored.values()
    )
    if same and bool(loaded.any()):
        return
    wrong = "is not the one in the file" if bool(loaded.any()) else "is all zeros"
    raise EncoderError(
        f"{component.name}: transformers {versions()['transformers']} loaded {type(model).__name__}, but "
        f"its embedding {wrong}: every text would get nonsense. Install another version of transformers: "
        f"{install_command('text')}"
    )


def _class(name: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            "text and image encoders run on the package 'transformers', which is not installed. "
            f"Run: {install_command('text')}"
        ) from None
    if int(transformers.__version__.split(".")[0]) < _SINCE:
        raise ConfigError(
            f"transformers {transformers.__version__} is installed, and text and image encoders were "
            f"compared with version {_SINCE}: older ones may give other states. "
            f"Run: {install_command('text')}"
        )
    try:
        return getattr(transformers, name)
    except AttributeError:
        raise ConfigError(
            f"transformers {transformers.__version__} has no {name}. Run: {install_command('text')}"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep bars and reports of transformers out of a run's own lines; leaves its settings as they were.

    A report says that missing tensors are random, also of those that nothing depends on.
    """
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _loading(component: Component, load: Callable[[], _Loaded]) -> _Loaded:
    from safetensors import SafetensorError  # it comes with transformers

    try:
        return load()
    except (*_MISFIT, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise EncoderError(
            f"{component.name}: {component.folder} cannot be loaded: {type(error).__name__}: {reason} "
            "Check that its files are of one model, and download it again."
        ) from error
