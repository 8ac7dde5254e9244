"""Paper counts exactly what is known, advice leads to plans that fit, the compiler agrees."""

import dataclasses
import importlib.util
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gptj_lab
from gptj_lab import cli, presets, versions
from gptj_lab.mesh import hardware, planner_compile, planner_programs, planner_table
from gptj_lab.mesh.planner_advice import replan
from gptj_lab.model.cache import cache_bytes, empty_cache

GPT_J_6B = presets.named("gpt-j-6b")

SIX_B = 6_050_882_784


def test_weights_and_cache_of_the_6b_are_exact():
    plan = gptj_lab.plan("gpt-j-6b", "colab-v5e-1", "generate", weights="bfloat16")
    assert plan.bytes["weights"] == 2 * SIX_B
    assert plan.bytes["cache"] == 28 * 2 * 2048 * 4096 * 2
    assert plan.bytes["optimiser"] == plan.bytes["gradients"] == plan.bytes["activations"] == 0
    wide = gptj_lab.plan("EleutherAI/gpt-j-6b", weights="float32")
    assert wide.bytes["weights"] == 4 * SIX_B
    assert wide.bytes["cache"] == 2 * plan.bytes["cache"]


def test_int8_keeps_embedding_head_norms_and_biases_in_bfloat16():
    matrices = 28 * (4 * 4096 * 4096 + 2 * 4096 * 16384)
    scales = 28 * (4 * 4096 + 16384 + 4096) * 4
    plan = gptj_lab.plan("gpt-j-6b", weights="int8")
    assert plan.bytes["weights"] == matrices + scales + 2 * (SIX_B - matrices)


def test_adamw_on_every_weight_takes_four_times_the_weights():
    plan = gptj_lab.plan("gpt-j-6b", "kaggle-v5e-8", "finetune", weights="float32")
    state = [plan.bytes[kind] for kind in ("weights", "gradients", "optimiser")]
    assert state == [state[0], state[0], 2 * state[0]]
    replicated = 28 * (3 * 4096) + 2 * 4096  # norms and the bias of fc_out lie on every device
    assert state[0] == 4 * ((SIX_B - replicated) // 8 + replicated)


def test_lora_trains_the_adapters_alone():
    full = gptj_lab.plan("gpt-j-6b", weights="bfloat16").bytes["weights"]
    lora = gptj_lab.plan("gpt-j-6b", job="lora", rank=4, weights="bfloat16").bytes
    adapters = 28 * 2 * (4096 * 4 + 4 * 4096) * 4
    assert lora["weights"] == full + adapters
    assert (lora["gradients"], lora["optimiser"]) == (adapters, 2 * adapters)


def test_cache_is_what_a_cache_holds(tiny_config):
    config = tiny_config()
    plan = gptj_lab.plan(config, batch=3, context=17, weights="float32")
    assert plan.bytes["cache"] == cache_bytes(empty_cache(config, 3, 17, "float32"))


def test_a_loaded_model_is_planned_by_its_config(tiny_config):
    model = types.SimpleNamespace(config=tiny_config(), name="tiny")
    plan = gptj_lab.plan(model, weights="float32")
    assert plan.bytes["weights"] == 4 * model.config.num_parameters
    assert plan.name == "tiny"


@pytest.mark.parametrize("job", ["generate", "lora", "finetune", "pretrain"])
@pytest.mark.parametrize("change", [{"batch": 2}, {"context": 256}, {"weights": "float32"}])
def test_more_of_anything_needs_more(job, change):
    base: dict = dict(context=128, batch=1, weights="bfloat16")
    small = gptj_lab.plan("gpt-j-6b", "v5p-8", job, data=1, model=4, **base)
    large = gptj_lab.plan("gpt-j-6b", "v5p-8", job, data=1, model=4, **(base | change))
    assert small.total < large.total
    assert all(small.bytes[kind] <= large.bytes[kind] for kind in small.bytes)


def test_more_chips_remat_and_int8_need_less_a_device():
    one = gptj_lab.plan("gpt-j-6b", "v5e-1", "lora")
    assert gptj_lab.plan("gpt-j-6b", "v5e-4", "lora").total < one.total
    assert gptj_lab.plan("gpt-j-6b", "v5e-1", "lora", remat=False).total > one.total
    assert gptj_lab.plan("gpt-j-6b", "v5e-1", "lora", weights="int8").total < one.total


def test_what_fits_the_free_colab():
    for job in ("generate", "lora"):
        assert gptj_lab.plan("gpt-j-6b", "colab-v5e-1", job, weights="int8").fits
        assert not gptj_lab.plan("gpt-j-6b", "colab-v5e-1", job, weights="float32").fits
    assert gptj_lab.plan("gpt-j-6b", "colab-v5e-1", weights="bfloat16").fits
    assert not gptj_lab.plan("gpt-j-6b", "colab-v5e-1", "finetune").fits
    assert gptj_lab.plan("gpt-j-6b", "v3-256", "pretrain").fits  # as it was
    assert gptj_lab.plan("pocket", "laptop", "pretrain").fits


@pytest.mark.parametrize(
    ("machine", "job", "settings"),
    [
        ("colab-v5e-1", "generate", {"weights": "float32"}),
        ("colab-v5e-1", "generate", {"batch": 64}),
        ("colab-v5e-1", "lora", {"weights": "float32"}),
        ("colab-v5e-1", "lora", {"weights": "int8", "batch": 16, "remat": False}),
        ("colab-v5e-1", "finetune", {}),
        ("colab-t4", "finetune", {}),
        ("v2-8", "finetune", {"weights": "float32"}),
        ("v3-8", "pretrain", {"data": 8}),
    ],
)
def test_advice_leads_to_plans_that_fit(machine, job, settings):
    plan = gptj_lab.plan("gpt-j-6b", machine, job, **settings)
    assert not plan.fits and plan.advice
    for advice in plan.advice:
        assert advice.change and replan(plan, **advice.change).fits, advice
        assert str(advice) in str(plan)


def test_there_may_be_nothing_to_advise():
    huge = dataclasses.replace(GPT_J_6B, d_model=65536, d_ff=4 * 65536, d_rotary=64)
    plan = gptj_lab.plan(huge, "colab-t4", "lora")
    assert not plan.fits
    assert [advice.change for advice in plan.advice] == [{}]


def test_speed_is_the_roofline():
    plan = gptj_lab.plan("gpt-j-6b", "colab-v5e-1", weights="bfloat16")
    read = plan.bytes["weights"] + plan.bytes["cache"] - 2 * 50400 * 4096
    assert plan.tokens_per_second == pytest.approx(819e9 / read)
    run = gptj_lab.plan("gpt-j-6b", "v3-256", "pretrain")
    weeks = 402e9 / run.tokens_per_second / (7 * 24 * 3600)  # the 402 B tokens of GPT-J's own run
    assert 3 < weeks < 6  # it took about five
    assert gptj_lab.plan("pocket", "laptop").tokens_per_second is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hardware": "colab-v5e1"}, "did you mean 'colab-v5e-1'"),
        ({"hardware": "v5e-3"}, "no slice of that size, only v5e-1, v5e-4"),
        ({"job": "lore"}, "did you mean 'lora'"),
        ({"weights": "int4"}, "did you mean 'int8'"),
        ({"job": "finetune", "weights": "int8"}, "can't be trained: use job='lora'"),
        ({"hardware": "v3-8", "model": 3}, "has 8 devices"),
        ({"hardware": "v3-32", "model": 32}, "doesn't divide num_heads 16"),
        ({"hardware": "v3-8", "data": 8, "model": 1, "batch": 3}, "a multiple of data is needed"),
        ({"context": 4096}, "2048 positions at most"),
        ({"batch": 0}, "batch is 0"),
        ({"rank": 0}, "rank is 0"),
    ],
)
def test_bad_arguments_are_sentences(arguments, message):
    with pytest.raises(ValueError) as error:
        gptj_lab.plan("gpt-j-6b", **arguments)
    assert message in str(error.value)


def test_unknown_models_are_sentences(tmp_path):
    with pytest.raises(ValueError, match="nearest are.*gpt-j-6b"):
        gptj_lab.plan("gptj-6b")
    with pytest.raises(TypeError, match="model is a int"):
        gptj_lab.plan(6)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="model_type"):
        gptj_lab.plan(str(tmp_path))


def test_every_name_is_a_machine():
    for name in hardware.NAMES:
        machine = hardware.find(name)
        assert machine.name == name and machine.memory > 2**30 and machine.devices >= 1, name
    assert [hardware.find(name).devices for name in ("v3-8", "v4-8", "v5p", "v3-256")] == [
        8, 4, 4, 256,
    ]  # fmt: skip
    assert hardware.find("kaggle-v5e-8").topology == "v5e:2x4"


def test_html_is_escaped():
    plan = gptj_lab.plan("gpt-j-6b")
    shown = dataclasses.replace(plan, name="<script>")._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert "needed" in shown and "It fits" in shown


def test_the_command_says_the_same_and_its_code_tells_whether_it_fits(capsys):
    assert cli.main(["plan", "gpt-j-6b", "--weights", "int8"]) == 0
    assert capsys.readouterr().out == f"{gptj_lab.plan('gpt-j-6b', weights='int8')}\n"
    tight = ["plan", "gpt-j-6b", "--hardware", "v2-8", "--job", "finetune", "--weights", "float32"]
    assert cli.main([*tight, "--no-remat", "--mesh-model", "8", "--mesh-data", "1"]) == 1
    assert "It does not fit" in capsys.readouterr().out
    assert cli.main(["plan", "gpt-j-6b", "--hardware", "v9"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_the_compiler_is_not_asked_in_vain(monkeypatch, capsys):
    assert cli.main(["plan", "gpt-j-6b", "--hardware", "colab-t4", "--compile"]) == 2
    assert "can't be asked about colab-t4" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["plan", "gpt-j-6b", "--compile"]) == 2
    assert "pip install 'gptj_lab[tpu]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "bytes_"),
    [
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (48.87G) "
            "exceeds available HBM (15.75G).",
            round(48.87 * 2**30),
        ),
        ("Ran out of memory in memory space hbm. Used 24.20G of 15.75G hbm.", round(24.2 * 2**30)),
        ("something else", None),
    ],
)
def test_refusals_tell_their_bytes(message, bytes_):
    assert planner_compile.bytes_wanted(message) == bytes_


PROGRAMS = [
    ("generate", "int8"),
    ("generate", "float32"),
    ("lora", "int8"),
    ("lora", "float32"),
    ("finetune", "float32"),
]


def programs(config, job, weights):
    """The job's programs on eight devices, two sequences of eight tokens."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    shape = (config, mesh, weights, 2, 8)
    if job == "generate":
        return planner_programs.generate_programs(*shape)
    rank = 2 if job == "lora" else None
    return {"train": planner_programs.training_program(*shape, rank=rank, remat=True)}


@pytest.mark.parametrize(("job", "weights"), PROGRAMS)
def test_the_programs_give_a_loss_or_logits(tiny_config, job, weights):
    for name, program in programs(tiny_config(), job, weights).items():
        first, *others = jax.eval_shape(program.step, *program.arguments)
        assert first.dtype == "float32", name
        assert first.shape == ((2, 304) if job == "generate" else ()), name
        if job != "generate":  # the weights and the moments as they came in
            shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in others]
            before = [[a.shape for a in jax.tree.leaves(t)] for t in program.arguments[:2]]
            assert shapes == before, name


def test_the_exchanges_of_a_training_step(tiny_config):
    """Parallel blocks exchange once over `model` on the way there, gradients over `data`."""
    program = programs(tiny_config(), "finetune", "float32")["train"]
    mesh = versions.value(program.arguments[0]["embed"]).sharding.mesh
    text = program.step.lower(*program.arguments).compile().as_text()
    found = planner_compile.exchanged(text, mesh)
    forward = [each for each in found if each[0] == "a block, forward"]
    # One sequence of 8 tokens by d_model 32; the CPU adds up bfloat16 in float32.
    assert forward == [("a block, forward", "all-reduce", "model", 1, 8 * 32 * 4)]
    assert any(each[0] == "a block, backward" and "data" in each[2] for each in found)
    said = str(planner_compile.Compiled("train", 10**9, True, exchanges=tuple(found)))
    assert "a block, forward: 1 all-reduce over model, 1.02 kB" in said


@pytest.mark.slow
@pytest.mark.parametrize(("job", "weights"), PROGRAMS)
def test_the_programs_compute_on_eight_devices(tiny_config, job, weights):
    for name, program in programs(tiny_config(num_layers=1), job, weights).items():
        ones = jax.tree.map(
            lambda leaf: jax.device_put(jnp.ones(leaf.shape, leaf.dtype), leaf.sharding),
            program.arguments,
        )
        out = program.step(*ones)
        assert np.isfinite(np.asarray(out[0])).all(), name


NEEDS_LIBTPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'gptj_lab[tpu]' in an environment of its own",
)


@pytest.mark.slow
@NEEDS_LIBTPU
def test_gptjs_own_run_compiles_for_its_machine():
    """256 cores as 32 x 8 (Wang and Komatsuzaki 2021)."""
    (answer,) = planner_compile.compile_plan(
        gptj_lab.plan("gpt-j-6b", "v3-256", "pretrain", data=32, model=8)
    )
    assert answer.fits and answer.peak < 15.48 * 2**30
    residual = 2048 * 4096 * 2  # bytes of one sequence in bfloat16
    assert ("a block, forward", "all-reduce", "model", 1, residual) in answer.exchanges


@pytest.mark.slow
@NEEDS_LIBTPU
@pytest.mark.parametrize("case", planner_table.CASES, ids="-".join)
def test_paper_and_compiler_agree(case):
    paper, compiled = planner_table.ask(*case)
    assert abs(planner_table.difference(paper, compiled)) < 0.1, compiled
    assert paper.fits == compiled.fits
