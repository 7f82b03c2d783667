import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import (
    LongAttentionConfig,
    Mechanism,
    attend,
    build_mechanism,
    list_mechanisms,
    reference_attend,
    register_mechanism,
)
from hf_longattn.engines.dispatch import observe
from hf_longattn.engines.token_grid import Grid
from hf_longattn.errors import InputError, LongAttentionError, OptionError
from hf_longattn.functional import prepare
from hf_longattn.mechanisms.common.base import attention_weights
from hf_longattn.mechanisms.common.capabilities import About
from hf_longattn.mechanisms.common.options import RESERVED
from hf_longattn.mechanisms.common.registry import (
    CACHED_PROTOTYPES,
    _prototype,
    mechanism_class,
    mechanism_from,
    options_of,
    prototype,
)
from tests.cases import every_case

Q = torch.randn(2, 4, 10, 8)


@every_case(
    ("call", "error", "says"),
    [
        (lambda: attend(Q, Q, Q, "widow"), OptionError, "Did you mean 'window'"),
        (lambda: attend(Q, Q, Q, "window:window=4"), OptionError, "and the options 'window=4' separately"),
        (lambda: attend(Q, Q, Q, "window", width=3), OptionError, "from its options: window"),
        (
            lambda: attend(Q, Q, Q, padding_mask=torch.ones(2, 9)),
            InputError,
            r"must be \(batch, key length\) = \(2, 10\)",
        ),
        (lambda: attend(Q, Q, Q, global_mask=torch.ones(10)), InputError, r"global_mask has shape \(10,\)"),
        (lambda: attend(Q, Q[:, :, :5], Q[:, :, :5]), InputError, "10 queries for 5 keys"),
        (lambda: attend(Q, Q[:, :3], Q[:, :3]), InputError, "H_kv dividing H"),
        (
            lambda: attend(Q, Q, Q, build_mechanism("full", num_heads=4, head_dim=8), window=3),
            OptionError,
            "build_mechanism",
        ),
        (lambda: reference_attend(Q, Q, Q, dropout_p=0.1), OptionError, "has no dropout"),
        (
            lambda: attention_weights(
                build_mechanism("full", num_heads=4, head_dim=8),
                torch.zeros(1, 4, 5000, 8),
                torch.zeros(1, 4, 5000, 8),
            ),
            InputError,
            "at most 4096",
        ),
    ],
)
def test_attend_refuses_unknown_names_options_and_shapes(call, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()


HALF = Q.half()
NEGATIVE = torch.zeros(2, 10).index_fill(1, torch.tensor([8, 9]), float("-inf"))
WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "q is a list": (
        lambda run: run([1.0], Q, Q),
        OptionError,
        "q, k and v are list, Tensor and Tensor, but must be tensors.",
    ),
    "k and v of two lengths": (lambda run: run(Q, Q, Q[:, :, :9]), InputError, "k (2, 4, 10, 8), v (2, 4, 9, 8)."),
    "another batch": (lambda run: run(Q, Q[:1], Q[:1]), InputError, "k (1, 4, 10, 8), v (1, 4, 10, 8)."),
    "dtypes": (
        lambda run: run(Q, HALF, HALF),
        OptionError,
        "torch.float16 and torch.float16; convert them to one floating-point dtype.",
    ),
    "integers": (lambda run: run(Q.int(), Q.int(), Q.int()), OptionError, "convert them to one floating-point dtype."),
    "devices": (
        lambda run: run(Q.to("meta"), Q, Q),
        OptionError,
        "q, k and v are on meta, cpu and cpu; move them to one device.",
    ),
    "no mechanism": (lambda run: run(Q, Q, Q, None), OptionError, "is None, but must be a name"),
    "PyTorch's is_causal": (lambda run: run(Q, Q, Q, is_causal=True), OptionError, "has no option 'is_causal'"),
    "PyTorch's attn_mask": (lambda run: run(Q, Q, Q, attn_mask=Q), OptionError, "has no option 'attn_mask'"),
    "scaling, a truth value": (
        lambda run: run(Q, Q, Q, scaling=True),
        OptionError,
        "scaling is True, but must be a finite number above",
    ),
    "a module for other heads": (
        lambda run: run(Q, Q, Q, build_mechanism("window", num_heads=2, head_dim=8)),
        OptionError,
        "build it with num_heads=4, head_dim=8.",
    ),
    "scaling, not a number": (lambda run: run(Q, Q, Q, scaling=float("nan")), OptionError, "scaling is nan, but"),
    "scaling 0, with which fused kernels give NaN": (
        lambda run: run(Q, Q, Q, scaling=0),
        OptionError,
        "scaling is 0, but",
    ),
    "scaling below 0": (lambda run: run(Q, Q, Q, "linear", scaling=-1.0), OptionError, "scaling is -1.0, but"),
    "seed below 0": (
        lambda run: run(Q, Q, Q, seed=-1),
        OptionError,
        "seed is -1, but must be a whole number from 0 to 2147483647;",
    ),
    "an additive mask": (
        lambda run: run(Q, Q, Q, padding_mask=NEGATIVE),
        InputError,
        "an additive mask padding_mask=(mask == 0).",
    ),
    "a mask on another device": (
        lambda run: run(Q, Q, Q, padding_mask=torch.ones(2, 10, device="meta")),
        InputError,
        "is on meta and k on cpu; move them",
    ),
    "a list as mask": (
        lambda run: run(Q, Q, Q, padding_mask=[True]),
        InputError,
        "padding_mask is a list, but must be",
    ),
    "a list of offsets": (lambda run: run(Q, Q, Q, cu_seqlens=[0, 10]), InputError, "it is a list for a batch of 2;"),
    "a list of hidden states": (lambda run: run(Q, Q, Q, hidden_states=[1]), OptionError, "leave hidden_states out."),
    "a list of hidden states that are taken": (
        lambda run: run(
            Q, Q, Q, build_mechanism("longformer", num_heads=4, head_dim=8, separate_global=True), hidden_states=[1]
        ),
        InputError,
        "hidden_states is a list, but must be",
    ),
    "hidden states of a width": (
        lambda run: run(
            Q,
            Q,
            Q,
            build_mechanism("longformer", num_heads=4, head_dim=8, separate_global=True),
            hidden_states=torch.ones(2, 10, 9),
        ),
        InputError,
        "but must be (batch, key length, hidden size) = (2, 10, 32).",
    ),
}


def test_attend_and_reference_attend_refuse_wrong_arguments_with_one_sentence() -> None:
    wrong = [(case, run, *rest) for case, rest in WRONG.items() for run in (attend, reference_attend)]
    wrong += [
        (
            f"dropout_p={p!r}",
            attend,
            lambda run, p=p: run(Q, Q, Q, dropout_p=p),
            OptionError,
            f"dropout_p is {p!r}, but must be a prob",
        )
        for p in (1.5, -0.5, float("nan"), "a", None)
    ]
    failed = []
    for case, run, call, error, says in wrong:
        try:
            call(run)
        except error as raised:
            sentence = str(raised)
            if says not in sentence or not sentence.endswith(".") or "\n" in sentence or len(sentence) > 300:
                failed.append((case, sentence))
        except Exception as other:
            failed.append((case, repr(other)))
        else:
            failed.append((case, "nothing was raised"))
    assert not failed, "\n".join(map(str, failed))


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_attend_takes_masks_of_any_dtype(dtype: torch.dtype) -> None:
    real = torch.arange(10).expand(2, -1) < torch.tensor([[10], [7]])
    tokens = torch.arange(10).expand(2, -1) == 3
    out = attend(Q, Q, Q, "longformer", window=4, padding_mask=real.to(dtype), global_mask=tokens.to(dtype))
    assert torch.equal(out, attend(Q, Q, Q, "longformer", window=4, padding_mask=real, global_mask=tokens))
    none, nobody = torch.zeros(2, 10, dtype=dtype), torch.zeros(2, 10, dtype=torch.bool)
    assert torch.equal(*(attend(Q, Q, Q, "longformer", window=4, global_mask=mask) for mask in (none, nobody)))


PLACES = Grid((12, 12))
ALL_NAMES = [*list_mechanisms(grid=False), *list_mechanisms(grid=True)]
CHANGES: dict[str, dict[str, Any]] = {
    "causal": {},
    "padding_mask": {"padding_mask": torch.arange(144)[None] >= 30},
    "documents": {"documents": torch.arange(144)[None] // 60},
    "cu_seqlens": {"cu_seqlens": torch.tensor([0, 60, 144])},
    "global_mask": {"global_mask": torch.arange(144)[None] % 50 == 7},
    "scaling": {"scaling": 0.8},
    "dropout_p": {"dropout_p": 0.3},
    "score_mod": {"score_mod": lambda score, b, h, i, j: score - 0.02 * (i - j).abs()},
    "seed": {"seed": 3},
    "hidden_states": {"hidden_states": torch.randn(1, 144, 16)},
    "grid": {"grid": (9, 16)},
    "prefix": {"grid": (11, 12), "prefix": 12},
}
UNCHANGED = {**{(name, "seed"): "nothing is drawn" for name in ALL_NAMES}, ("synthesizer", "scaling"): "no q·k"}
"""Where an argument may leave the output as it is, as the definition has it."""


def test_attend_uses_or_refuses_every_argument_with_every_mechanism() -> None:
    """A change of an argument changes the output, or there is a sentence. What the output is then is compared in
    test_contract.py."""
    (q, k, v), failed = torch.randn(3, 1, 2, 144, 8), []
    for name in ALL_NAMES:
        cls = mechanism_class(name)
        variants = [dict(cls.about.sample)]
        if name == "longformer":
            variants.append({**cls.about.sample, "separate_global": True, "global_tokens": (50,)})
        for options in variants:
            usual: dict[str, Any] = {"causal": cls.causal is True, **options}
            usual |= {"grid": PLACES} if cls.capabilities.needs_grid else {}
            usual |= {"hidden_states": torch.ones(1, 144, 16)} if options.get("separate_global") else {}
            before = attend(q, k, v, name, **usual)
            for argument, change in CHANGES.items():
                changed = {**usual, **change} if change else {**usual, "causal": not usual["causal"]}
                try:
                    after = attend(q, k, v, name, **changed)
                except LongAttentionError:
                    continue
                if torch.equal(before[:, :, 30:], after[:, :, 30:]) and (name, argument) not in UNCHANGED:
                    failed.append(f"{name} {options}: {argument} is ignored")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("argument", ["global_mask", "grid"])
def test_attend_refuses_globals_and_grids_that_a_mechanism_does_not_take(argument: str) -> None:
    q = torch.randn(1, 2, 144, 8)
    takes = {
        name: mechanism_class(name).capabilities.takes_globals
        if argument == "global_mask"
        else mechanism_class(name).capabilities.needs_grid
        for name in ALL_NAMES
    }
    refused = {}
    for name in ALL_NAMES:
        usual = {
            "causal": mechanism_class(name).causal is True,
            "grid": PLACES if mechanism_class(name).capabilities.needs_grid else None,
        }
        try:
            attend(q, q, q, name, **{**usual, **CHANGES[argument]}, **mechanism_class(name).about.sample)
        except InputError as error:
            refused[name] = str(error)
    assert set(refused) == {name for name, taken in takes.items() if not taken}
    assert all(
        f"Mechanism {name!r}" in sentence and f"leave {argument} out" in sentence for name, sentence in refused.items()
    )


def test_register_mechanism_takes_a_class_of_a_user_and_refuses_a_taken_name() -> None:
    from hf_longattn.mechanisms.common.registry import _REGISTRY
    from hf_longattn.mechanisms.window import Window

    with pytest.raises(OptionError, match=r"the mechanism 'window': .*window\.py:\d+ and .*test_attend\.py:\d+"):

        @register_mechanism("window")
        class Other(Window):
            pass

    @register_mechanism("my_window")
    class Mine(Window):
        about = About(summary="every second neighbour")

        def mask_mod(self, causal, global_mask):  # type: ignore[no-untyped-def]
            return super().mask_mod(causal, global_mask)

    try:
        assert "my_window" in list_mechanisms()
        assert issubclass(Mine, Mechanism)
        torch.testing.assert_close(attend(Q, Q, Q, "my_window", window=4), attend(Q, Q, Q, "window", window=4))
    finally:
        _REGISTRY.pop("my_window")
    Window.name = "window"


def test_attend_takes_hidden_states_for_mechanisms_that_need_them() -> None:
    hidden = torch.randn(*Q.shape[:1], Q.shape[2], 24)
    call = {"separate_global": True, "global_tokens": 0, "window": 4, "hidden_states": hidden}
    expected = reference_attend(Q, Q, Q, "longformer", **call).float()
    torch.testing.assert_close(attend(Q, Q, Q, "longformer", **call), expected, atol=1e-5, rtol=0)


DRAWN = [
    *((name, mechanism_class(name).about.sample) for name in list_mechanisms(grid=False)),
    ("taylor", {"feature_dim": 4}),
    ("synthesizer", {"variant": "random"}),
    ("routing", {"router": "learned", "num_clusters": 2}),
    ("hybrid", {"features": "taylor:feature_dim=4"}),
]


@every_case(("name", "options"), DRAWN, ids=lambda value: str(value))
class TestMechanismByName:
    """A mechanism by name is the same for the same seed, wherever it runs, and leaves the process's random state
    alone."""

    def call(self, name: str, options: dict[str, Any], q: Tensor, seed: int = 0, call: Any = attend) -> Tensor:
        return call(q, q, q, name, causal=mechanism_class(name).causal in ("both", True), seed=seed, **options)

    def test_no_global_generator_is_touched(self, name: str, options: dict[str, Any]) -> None:
        states = [torch.get_rng_state()]
        states += torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        _prototype.cache_clear()
        prototype(name, options)
        self.call(name, options, Q)
        self.call(name, options, Q, seed=3, call=reference_attend)
        now = [torch.get_rng_state()]
        now += torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        assert all(torch.equal(a, b) for a, b in zip(states, now, strict=True))

    def test_equal_seeds_give_equal_results(self, name: str, options: dict[str, Any]) -> None:
        found = []
        for state in (1, 2):
            torch.manual_seed(state)
            found.append(self.call(name, options, Q, seed=5))
        assert torch.equal(*found)
        with ThreadPoolExecutor(4) as pool:
            assert all(
                torch.equal(one, found[0]) for one in pool.map(lambda _: self.call(name, options, Q, seed=5), range(8))
            )

    @every_case("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_is_built_on_the_device_of_the_inputs_in_any_dtype(
        self, name: str, options: dict[str, Any], dtype: torch.dtype
    ) -> None:
        assert self.call(name, options, Q.to(dtype)).dtype == dtype
        q = Q.to("meta", dtype)
        module, _ = prepare(q, q, q, name, causal=mechanism_class(name).causal in ("both", True), **options)
        assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} <= {"meta"}


def test_attend_builds_a_mechanism_once_and_still_checks_options() -> None:
    first, second = (prepare(Q, Q, Q, "window", window=1)[0] for _ in range(2))
    assert first is second
    with pytest.raises(OptionError, match="window"):  # True equals 1, and is not a number of tokens
        attend(Q, Q, Q, "window", window=True)
    longer = Q.repeat(1, 1, 2, 1)
    assert prepare(longer, longer, longer, "window", window=1)[0] is not first


def test_prototypes_of_mechanisms_are_few_and_without_storage() -> None:
    for window in range(1, 2 * CACHED_PROTOTYPES):
        prototype("window", {"window": 2 * window})
    assert _prototype.cache_info().currsize <= CACHED_PROTOTYPES
    for name in list_mechanisms():
        assert all(tensor.is_meta for tensor in prototype(name, mechanism_class(name).about.sample).parameters())


def test_attend_by_name_runs_in_eval_mode_and_a_module_in_its_own() -> None:
    q, k, v = torch.randn(3, 1, 2, 70, 8)
    modes: list[bool] = []
    with observe(lambda mechanism, _: modes.append(mechanism.training)):
        attend(q, k, v, "window")
        attend(q, k, v, build_mechanism("window", num_heads=2, head_dim=8))
    assert modes == [False, True]


@pytest.mark.parametrize("name", [name for name in list_mechanisms(grid=False) if "seed" in options_of(name)])
def test_seed_of_attend_is_the_seed_of_build_mechanism(name: str) -> None:
    q, k, v = torch.randn(3, 1, 2, 300, 8)
    options = dict(mechanism_class(name).about.sample)
    outs = [attend(q, k, v, name, seed=seed, **options) for seed in (0, 7)]
    assert not torch.equal(*outs)
    for seed, out in zip((0, 7), outs, strict=True):
        module = build_mechanism(name, num_heads=2, head_dim=8, max_length=300, seed=seed, **options).eval()
        assert torch.equal(attend(q, k, v, module), out)


@pytest.mark.parametrize("name", [name for name in list_mechanisms(grid=False) if "max_length" in options_of(name)])
def test_max_length_of_build_mechanism_is_the_option_and_the_field_of_the_config(name: str) -> None:
    options = {key: value for key, value in mechanism_class(name).about.sample.items() if key != "max_length"}
    assert build_mechanism(name, num_heads=2, head_dim=8, max_length=600, **options).options.max_length == 600  # type: ignore[attr-defined]
    q, k, v = torch.randn(3, 1, 2, 100, 8)
    config = LongAttentionConfig(name, max_length=600, **options)
    for causal in (False, True):
        if mechanism_class(name).causal not in ("both", causal):
            continue
        torch.manual_seed(0)
        module = build_mechanism(name, num_heads=2, head_dim=8, max_length=600, **options)
        torch.manual_seed(0)
        configured = mechanism_from(*config.for_layer(0), num_heads=2, head_dim=8)
        assert torch.equal(attend(q, k, v, module, causal=causal), attend(q, k, v, configured, causal=causal))


def test_no_option_of_a_mechanism_has_the_name_of_an_argument() -> None:
    """What build_mechanism and attend take themselves cannot be passed on to an option."""
    own = {*inspect.signature(build_mechanism).parameters, *inspect.signature(attend).parameters, "generator"} - {
        "options"
    }
    assert own - {"max_length", "seed"} == RESERVED
