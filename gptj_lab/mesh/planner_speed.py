"""How fast a job could be: a roofline, not a promise."""

from gptj_lab.mesh.hardware import Hardware
from gptj_lab.mesh.planner_memory import WEIGHTS, Setting, cache_bytes, held
from gptj_lab.scaling import six_n

# Of peak arithmetic, counted as 6 N: what GPT-J's own run reached, 5.4 of
# 13.4 PFLOP/s (Wang and Komatsuzaki 2021).
TRAINING_UTILISATION = 0.40


def tokens_per_second(setting: Setting, machine: Hardware) -> float | None:
    """A ceiling for all sequences together, or None where the machine's speed isn't known.

    Generation reads every weight (a row of the embedding, not all of it) and the full cache once
    a step. Training takes 6 operations a parameter and token (Kaplan et al. 2020), LoRA 4, as no
    gradient of the frozen weights is made; at TRAINING_UTILISATION of the peak.
    """
    if machine.bandwidth is None or machine.peak_flops is None:
        return None
    config = setting.config
    embedding = config.vocab_size * config.d_model
    if setting.job == "generate":
        frozen, trained = held(config, setting.weights, None, setting.model)
        plain = WEIGHTS["bfloat16" if setting.weights == "int8" else setting.weights]
        read = frozen + trained - embedding * plain // setting.model + cache_bytes(setting)
        return setting.batch * machine.bandwidth / read
    operations = six_n(config) * (4 if setting.job == "lora" else 6) // 6
    return TRAINING_UTILISATION * machine.peak_flops * machine.devices / operations
