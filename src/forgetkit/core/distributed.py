"""Several processes as one run: who this process is, and the few things ranks say to each other.

A launcher (`torchrun`, `accelerate launch`, a Kubernetes or Slurm job that calls either) starts the same command
`WORLD_SIZE` times. Rank 0 alone owns the run folder's lock, decides which stages are to be made, commits them and
talks to the terminal; the others take its word, so that a file system that lags cannot make ranks disagree.

Alone (`world` 1) every function here is the identity and no process group is made. Talk goes over gloo on the CPU;
tensors on a GPU go over NCCL. Torch is imported when a group is wanted, not before: the command line needs `tells`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from forgetkit.core.errors import ForgetkitError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

MEETING = timedelta(minutes=15)
"""How long ranks wait for each other at the start (a node may still be pulling its image)."""
PATIENCE = timedelta(hours=24)
"""How long a rank waits for another later on: rank 0 evaluates alone. A process that dies is noticed at once."""
_LAUNCHER = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""What `accelerate launch` can switch on behind our back, and what it is called."""


class Lost(ForgetkitError):  # noqa: N818 - what went wrong is told by the other
    """Another process of the run has ended; its own message says why."""

    def __init__(self) -> None:
        super().__init__(
            "another process of this run has ended",
            f"rank {rank()}",
            "see its message, then start the same command again: what was reached is kept",
        )


# ---- who this process is ----


def _dist() -> Any:
    """`torch.distributed` when a group exists, else None."""
    module = sys.modules.get("torch.distributed")
    return module if module is not None and module.is_available() and module.is_initialized() else None


def rank() -> int:
    """This process' number, 0 to `world` - 1."""
    return int(dist.get_rank()) if (dist := _dist()) else 0


def world() -> int:
    """The number of processes of this run; 1 before `join`."""
    return int(dist.get_world_size()) if (dist := _dist()) else 1


def is_main() -> bool:
    """Whether this is rank 0, the one that writes and speaks."""
    return rank() == 0


def ranks_here() -> int:
    """How many ranks share this machine's cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world() > 1 else 1


def share(count: int) -> range:
    """This rank's part of 0..count-1: contiguous, in rank order, sizes differing by one at most."""
    return range(-(-count * rank() // world()), -(-count * (rank() + 1) // world()))


def micro_batch(batch_blocks: int, accumulation: int, ranks: int) -> tuple[int, int]:
    """(blocks per micro-batch, micro-batches per step) of each rank, for steps of batch_blocks * accumulation blocks.

    A step's blocks are dealt out evenly; a rank's micro-batch is as large as possible, but not above `batch_blocks`.

    Raises:
        ForgetkitError: the blocks of a step cannot be dealt out evenly.
    """
    blocks = batch_blocks * accumulation
    if blocks % ranks:
        raise ForgetkitError(
            f"a step of {batch_blocks} x {accumulation} blocks cannot be dealt out to {ranks} processes",
            "batch_blocks",
            f"make batch_blocks * accumulation a multiple of {ranks}",
        )
    each = blocks // ranks
    size = next(n for n in range(min(batch_blocks, each), 0, -1) if each % n == 0)
    return size, each // size


def batches(count: int, batch_blocks: int, accumulation: int) -> list[list[int]]:
    """This rank's micro-batches, as indices into the `count` items of a whole training.

    Step s is made of the items s*B .. (s+1)*B - 1 (B = batch_blocks * accumulation), as in one process; each rank takes
    a contiguous part of them. The last step may have fewer: some ranks' last micro-batches are then short, or empty, so
    that all ranks take the same number of steps.
    """
    size, each = micro_batch(batch_blocks, accumulation, world())
    step, found = batch_blocks * accumulation, []
    for first in range(0, count, step):
        here = [first + i for i in share(min(step, count - first))]
        found += [here[i * size : (i + 1) * size] for i in range(each)]
    return found


# ---- beginning and end ----


def check_world(asked: int) -> None:
    """Compare the number of processes asked for (`world_size`) with what the launcher says it started.

    Without this, a launcher that is misconfigured runs so many unrelated copies, each sure of being the only one.

    Raises:
        ForgetkitError: they differ, the launcher's variables are incomplete, or it wants an engine that is not used.
    """
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdigit() or int(given) != asked:
        found = f"{given} processes" if given != "1" else "this process alone"
        what = f"world size mismatch: {asked} asked for, but the launcher made {found}"
        remedy = f"torchrun --nproc-per-node {asked} -m forgetkit ... --set world_size={asked} (docs/scale.md)"
        if asked == 1:
            remedy = f"add --set world_size={given}, or start the command without the launcher"
        raise ForgetkitError(what, "world_size", remedy)
    if asked == 1:
        return
    missing = [name for name in _LAUNCHER if not os.environ.get(name)]
    if missing:
        raise ForgetkitError(f"the launcher did not set {', '.join(missing)}", "world_size", "start it with torchrun")
    for variable, engine in _ENGINES.items():
        if os.environ.get(variable, "false").lower() in ("1", "true"):
            remedy = "use torchrun, or accelerate launch --multi_gpu (or --cpu) without it; see docs/scale.md"
            raise ForgetkitError(f"accelerate asks for {engine}, which is not supported", variable, remedy)
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        remedy = "accelerate launch --mixed_precision no; model.dtype is the compute dtype"
        raise ForgetkitError("autocast would change what is computed", "ACCELERATE_MIXED_PRECISION", remedy)


def alone(command: str, asked: int) -> None:
    """Refuse several processes for a command that cannot use them. Raises ForgetkitError."""
    check_world(asked)
    if asked != 1:
        raise ForgetkitError(f"{command} runs in one process", "world_size", "start it without the launcher")


def join(asked: int, device: str, what: str) -> None:
    """Become one of `asked` ranks for the rest of this process' life; with 1, do nothing but check.

    Args:
        device: `model.device`; each rank takes the GPU of its local number.
        what: everything the ranks must agree on, as text; compared over ranks.

    Raises:
        ForgetkitError: as `check_world`; the ranks do not meet; more ranks than GPUs; they disagree on `what`.
    """
    if _dist() is None or world() != asked:  # else a group of the caller's, or of an earlier run
        check_world(asked)
        if asked == 1:
            return
        _join(asked, device)
    if len(set(gather(what))) > 1:
        raise ForgetkitError(
            "the processes were started with different settings, inputs or versions",
            "world_size",
            "give every one the same command",
        )
    if not is_main():
        from forgetkit.core.progress import QUIET_VARIABLE

        os.environ[QUIET_VARIABLE] = "1"
        logging.getLogger("forgetkit").setLevel(logging.ERROR)


def _join(asked: int, device: str) -> None:
    import torch
    from torch import distributed as dist
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    local = int(os.environ["LOCAL_RANK"])
    cuda = torch.cuda.is_available() and device in ("auto", "cuda")
    if cuda and local >= torch.cuda.device_count():
        what = f"local rank {local} has no GPU: there are {torch.cuda.device_count()} here"
        raise ForgetkitError(what, "world_size", "start as many processes per machine as it has GPUs")
    if device == "mps" or (device == "auto" and torch.backends.mps.is_available()):
        raise ForgetkitError("several processes need CUDA or the CPU", "model.device", "use model.device=cpu")
    if cuda:
        torch.cuda.set_device(local)
    try:
        store, me, size = next(iter(rendezvous("env://", timeout=MEETING)))
        # torchrun keeps its store over restarts; what the last attempt left there would be taken for this one's.
        store = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=me, world_size=size, timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)
    except (RuntimeError, ValueError, OSError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ForgetkitError(f"the {asked} processes did not meet at {place}: {reason}", "world_size") from error


def tells() -> bool:
    """Whether this process is to print the error it is about to end with: the first rank that fails, and no other."""
    dist = _dist()
    if dist is None:
        several = os.environ.get("WORLD_SIZE", "1") != "1"
        return not several or os.environ.get("LOCAL_RANK", "0") == "0"  # one line per machine
    try:
        first: int = dist.group.WORLD.get_group_store().add("forgetkit/ended", 1)
    except RuntimeError:
        return True
    return first == 1


# ---- what ranks say to each other ----


@contextlib.contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that gloo and NCCL raise when a peer is gone
        logging.getLogger("forgetkit").debug("collective failed: %s", error)
        raise Lost from error


def gather(value: T) -> list[T]:
    """Every rank's value, in rank order; small plain objects only."""
    dist = _dist()
    if dist is None:
        return [value]
    found: list[Any] = [None] * world()
    with _together():
        dist.all_gather_object(found, value)
    return found


def broadcast(value: T) -> T:
    """Rank 0's value, on every rank; small plain objects only."""
    dist = _dist()
    if dist is None:
        return value
    box = [value]
    with _together():
        dist.broadcast_object_list(box, src=0, device="cpu")
    return box[0]


def from_main(make: Callable[[], T]) -> T:
    """What `make()` gives on rank 0; it is called nowhere else."""
    return broadcast(make()) if is_main() else broadcast(None)  # type: ignore[return-value]


def barrier() -> None:
    """Wait until every rank is here."""
    gather(None)


def sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all ranks, the same bits on each; all ranks give the same shapes."""
    dist = _dist()
    if dist is None:
        return
    with _together():
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()
