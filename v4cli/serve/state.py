"""What the server is and does now, for the page at / and for scripts: /state."""

import time
from typing import TYPE_CHECKING

import psutil

from v4cli import __version__
from v4cli.engine.engine import Engine

if TYPE_CHECKING:
    from v4cli.serve.service import Service


def state(service: "Service") -> dict:
    """Counts are since the start, memory in bytes; `memory` and `experts` are null where there is nothing to tell."""
    engine, pool, metrics = service.engine, service.pool, service.metrics
    done = metrics.done
    return {
        "model": service.name,
        "version": __version__,
        "loaded": engine is not None,
        "context": service.served.config.max_position_embeddings,
        "uptime_s": round(time.time() - metrics.start, 3),
        "requests": {"running": metrics.n_running, "queued": pool.n_waiting},
        "sessions": {"busy": pool.n_busy, "kept": pool.n_kept, "limit": pool.most},
        "answers": {"complete": done["answers"], "cancelled": metrics.cancelled, "failed": metrics.failed},
        "tokens": {"prompt": done["prompt"], "cached": done["cached"], "sampled": metrics.sampled},
        "resident_bytes": psutil.Process().memory_info().rss,
        "memory": engine and _memory(engine),
        "experts": engine and _experts(engine),
    }


def _memory(engine: Engine) -> dict | None:
    items = engine.memory()
    return items and {name: {"planned": planned, "held": held} for name, (planned, held) in items.items()}


def _experts(engine: Engine) -> dict:
    """Where they lie, the fastest tier first, and how often they were where they were needed."""
    config = engine.config
    total = config.num_hidden_layers * config.n_routed_experts
    slots, stream = engine.placed and engine.placed.slots, engine.stream
    tiers = {}
    if engine.placed:
        tiers["VRAM"] = slots.policy.n_resident if slots else total
    if slots or not engine.placed:
        tiers["RAM"] = stream.policy.n_resident if stream else total - tiers.get("VRAM", 0)
    if stream:
        tiers["SSD"] = max(total - sum(tiers.values()), 0)
    counts = engine.counts()
    return {"total": total, "tiers": tiers, "counts": counts.to_dict() if counts else None}
