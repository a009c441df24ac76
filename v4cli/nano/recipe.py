"""What nano is: its configuration, the same architecture as Flash at a forty-thousandth of the size."""

from v4cli.model.config import V4Config
from v4cli.model.known import COMMON

VOCAB_SIZE = 1024

CONFIG = COMMON | {
    "compress_ratios": [0, 4, 128, 4, 128, 4],
    "head_dim": 128,
    "hidden_size": 192,
    "index_n_heads": 4,
    "index_topk": 512,
    "moe_intermediate_size": 128,
    "n_routed_experts": 8,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hash_layers": 2,
    "num_hidden_layers": 6,
    "num_nextn_predict_layers": 0,
    "o_groups": 2,
    "o_lora_rank": 96,
    "q_lora_rank": 96,
    "routed_scaling_factor": 1.5,
    "vocab_size": VOCAB_SIZE,
}

# The drafter: a DSpark head on the frozen trunk. Its prompts stay those of the April release, which nano learned.
DRAFTER = {
    "compress_ratios": [*CONFIG["compress_ratios"], 0, 0, 0],
    "num_nextn_predict_layers": 1,
    "dspark_block_size": 5,
    "dspark_noise_token_id": 2,
    "dspark_target_layer_ids": [3, 4, 5],
    "dspark_markov_rank": 64,
    "prompt_contract": "april",
}

GENERATION_CONFIG = {
    "bos_token_id": 0,
    "eos_token_id": 1,
    "do_sample": False,
    "temperature": 0.0,
    "top_p": 1.0,
}


def config() -> V4Config:
    """nano's validated config, without drafter."""
    return V4Config.from_dict(CONFIG)


def config_with_drafter() -> V4Config:
    """nano's validated config as it ships."""
    return V4Config.from_dict(CONFIG | DRAFTER)
