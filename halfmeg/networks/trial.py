"""A user's network tried out before anything is trained, so that each fault is one line."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halfmeg.data.shape import ImageSize, image_shape
from halfmeg.networks.leaves import gradient_leaves, name_of, passing_buffers, plain_numbers
from halfmeg.networks.macs import measure_macs
from halfmeg.networks.own import MAX_WEIGHTS_BYTES, build_own, use_channels_last
from halfmeg.networks.protocol import body_parameters, evaluating, preparation
from halfmeg.networks.trace import quiet
from halfmeg.networks.ways import right_kernels, with_kernels
from halfmeg.places.draws import kept_draws, seed_draws
from halfmeg.places.load import describe, running
from halfmeg.places.place import PlaceWarning, handed_over
from halfmeg.places.source import read_source

BATCH = 7
DRAWS = 32
"""Of a network that passes over layers by chance, until each of its weights took part."""

STEPS = 3
"""Batches that a network has seen when what it keeps of them is looked at."""

PREPARATION_IMAGES = 256
TOLERANCE = 1e-3
"""Largest difference of a logit, in parts of the largest, that the order of sums explains."""

HEADER_BYTES = 2**20
"""Of a file of weights, left for names and shapes."""

_tried: set[tuple[Any, ...]] = set()


def try_out(
    place: str,
    num_classes: int,
    image_size: ImageSize,
    budget: int,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Try a network once for each object, text, size and type; later calls return at once.

    Args:
        place: where it stands.
        num_classes, image_size, budget: what it is built with.
        dtype: what its products are computed in, bfloat16 by autocast.

    Raises:
        ValueError: a fault, by name.

    Warns:
        PlaceWarning: it cannot be exported, or its multiply-accumulates are not all known.
    """
    model = build_own(place, num_classes, image_size, budget)
    key = (
        place, id(handed_over(place)), read_source(place).sha256, num_classes,
        image_shape(image_size), budget, dtype,
    )  # fmt: skip
    if key in _tried:
        return
    trial = _Trial(place, model, num_classes, image_size)
    with kept_draws():
        trial.check_parameters()
        trial.check_modes()
        trial.check_training(torch.float32)
        trial.check_evaluation()
        trial.check_rebuilding(build_own(place, num_classes, image_size, budget))
        trial.check_methods()
        if dtype != torch.float32:
            trial.check_training(dtype)
        trial.warn_of_costs()
        trial.warn_of_export()
    _tried.add(key)


def accepts(model: nn.Module, num_classes: int, image_size: ImageSize) -> bool:
    """Return whether a network, once built, takes images of another size."""
    images = torch.zeros(2, *image_shape(image_size))
    with kept_draws(), torch.no_grad(), evaluating(model):
        try:
            return tuple(model(images).shape) == (2, num_classes)
        except (Exception, SystemExit):  # whatever a user's code raises
            return False


class _Trial:
    """One network under trial; each check raises a ValueError that names the fault."""

    def __init__(
        self, place: str, model: nn.Module, num_classes: int, image_size: ImageSize
    ) -> None:
        self.place = place
        self.model = model
        self.num_classes = num_classes
        self.image_size = image_size
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(BATCH, *image_shape(image_size), generator=generator)

    def fault(self, text: str) -> ValueError:
        return ValueError(f"{self.place} {text}")

    def logits(self, model: Callable[[Tensor], Any], images: Tensor, mode: str) -> Tensor:
        """Run the network and look at what comes back."""
        shape = "×".join(map(str, images.shape))
        try:
            logits = model(images)
        except (Exception, SystemExit) as error:
            raise self.fault(
                f"raises in {mode} on images of {shape}: {describe(error, self.place)}"
            ) from None
        if not isinstance(logits, Tensor):
            kind = type(logits).__name__
            raise self.fault(f"returns a {kind} in {mode}; the logits alone are expected")
        expected = (len(images), self.num_classes)
        if tuple(logits.shape) != expected:
            found = "×".join(map(str, logits.shape)) or "a single number"
            raise self.fault(
                f"returns {found} in {mode}; logits of {expected[0]}×{expected[1]} are expected"
            )
        if not logits.is_floating_point():
            raise self.fault(f"returns {logits.dtype} in {mode}; logits are real numbers")
        if not logits.isfinite().all():
            raise self.fault(f"returns logits in {mode} that are not finite")
        return logits

    def copied(self) -> nn.Module:
        """Return a copy, as training makes one: a lock or a computed tensor allows none."""
        with running(self.place, "cannot be copied"):
            return copy.deepcopy(self.model)

    def check_parameters(self) -> None:
        """Something to train, each number once, and no more than can be stored."""
        for module in self._modules():
            if isinstance(module, torch.jit.ScriptModule):
                raise self.fault("holds a scripted module; use it as it was before")
        named = dict(self.model.named_parameters())
        if not any(p.requires_grad for p in named.values()):
            raise self.fault("has no parameters to train")
        homes: dict[int, str] = {}
        for name, parameter in named.items():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise self.fault(
                    f"leaves {name} without a shape until it runs; give its layer its sizes"
                )
            if not parameter.numel():
                continue
            other = homes.setdefault(parameter.untyped_storage().data_ptr(), name)
            if other != name:
                raise self.fault(
                    f"has two parameters on the same memory, {other} and {name}; "
                    f"to share weights, assign the parameter itself"
                )
        for name, buffer in self.model.named_buffers():
            if buffer.numel() and buffer.nbytes > buffer.untyped_storage().nbytes():
                raise self.fault(
                    f"has {name} with several numbers on the same memory, as expand leaves them; "
                    "clone it"
                )
        tensors = [*named.values(), *dict(self.model.named_buffers()).values()]
        size, allowed = sum(t.nbytes for t in tensors), MAX_WEIGHTS_BYTES - HEADER_BYTES
        if size > allowed:
            count = sum(t.numel() for t in tensors)
            raise self.fault(
                f"has {count:,} numbers in parameters and buffers, {size:,} bytes; allowed: "
                f"{allowed:,} bytes; make it smaller"
            )
        with running(self.place, "raises when its state is stored"):
            stored = self.model.state_dict()
        for name, value in stored.items():
            if not isinstance(value, Tensor):
                raise self.fault(
                    f"stores extra state that is no tensor, {name}; register it, as by "
                    f"register_buffer, or leave get_extra_state out"
                )

    def _modules(self) -> list[nn.Module]:
        try:
            return list(self.model.modules())
        except TypeError as error:  # a dataclass compares by its fields
            told = f"cannot list its modules: {error}; a dataclass needs eq=False"
            raise self.fault(told) from None

    def check_modes(self) -> None:
        """`train` and `eval` return the network, as whoever calls them expects."""
        for mode in ("train", "eval"):
            model = self.copied()
            with running(self.place, f"raises in {mode}()"):
                returned = getattr(model, mode)()
            if returned is not model:
                raise self.fault(
                    f"has a {mode}() that does not return the network; end it with `return self`"
                )

    def check_training(self, dtype: torch.dtype) -> None:
        """In training mode: logits, and a gradient for each parameter, none of them hidden."""
        mode = "training" if dtype == torch.float32 else "training in bfloat16"
        model = self.copied().train()
        images = self.images.to(dtype)
        if dtype != torch.float32:  # as a run computes it
            use_channels_last(model)
            images = images.contiguous(memory_format=torch.channels_last)

        def forward(images: Tensor) -> Any:
            shapes = [image_shape(self.image_size)]
            return with_kernels(model, right_kernels(model, shapes, dtype))(images)

        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        buffers = {name: (b.dtype, b.shape) for name, b in model.named_buffers()}
        for _ in range(DRAWS):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
                logits = self.logits(forward, images, mode)
            self.differentiate(model, logits, mode)
            unreached = [name for name, p in named.items() if p.grad is None]
            if not unreached:
                break
        else:
            raise self.fault(
                f"has parameters that no gradient reaches: {', '.join(unreached)}; "
                f"remove them, or set requires_grad to False"
            )
        for name, parameter in named.items():
            assert parameter.grad is not None
            if not parameter.grad.isfinite().all():
                raise self.fault(f"has a gradient that is not finite in {mode}: {name}")
        for name, buffer in model.named_buffers():
            if name not in buffers:
                raise self.fault(f"registers {name} in {mode}; register it in __init__")
            if (buffer.dtype, buffer.shape) != buffers[name]:
                raise self.fault(
                    f"gives {name} another type or shape in {mode}; change it in place, as by "
                    f"self.{name}.copy_(...)"
                )

    def differentiate(self, model: nn.Module, logits: Tensor, mode: str) -> None:
        """Add the gradients of a loss to those that the parameters have."""
        if not logits.requires_grad:
            raise self.fault("gives logits that no gradient comes back from")
        loss = F.cross_entropy(logits.float(), torch.arange(BATCH) % self.num_classes)
        hidden = [
            t for t in gradient_leaves(loss) if id(t) not in {id(p) for p in model.parameters()}
        ]
        if hidden:
            names = [name_of(model, t) for t in hidden]
            raise self.fault(
                f"has weights outside parameters(): {', '.join(names)}; "
                f"register them, as by nn.Parameter or nn.ModuleList"
            )
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise self.fault(f"raises in {mode}, backward: {describe(error, self.place)}") from None

    def check_evaluation(self) -> None:
        """In evaluation mode: an image gives the same logits whenever and beside whatever."""
        before = {key: value.clone() for key, value in self.model.state_dict().items()}
        with torch.no_grad(), evaluating(self.model):
            seed_draws(1)
            images = self.images.clone()
            logits = self.logits(self.model, self.images, "evaluation")
            if not torch.equal(self.images, images):
                raise self.fault("changes the images that it is given; let it work on a copy")
            seed_draws(2)
            again = self.logits(self.model, self.images, "evaluation")
            if not torch.equal(logits, again):
                raise self.fault(
                    "draws at evaluation: the same images give other logits; "
                    "a functional dropout needs training=self.training"
                )
            for index in range(BATCH):
                alone = self.logits(self.model, self.images[index : index + 1], "evaluation")
                if not _agree(alone, logits[index : index + 1]):
                    raise self.fault(
                        f"gives an image other logits alone than in a batch of {BATCH}; "
                        f"at evaluation it must not look at the other images"
                    )
        for key, value in self.model.state_dict().items():
            if key not in before:
                raise self.fault(f"registers {key} at evaluation; register it in __init__")
            if not torch.equal(value, before[key]):
                raise self.fault(f"changes {key} at evaluation")

    def check_rebuilding(self, other: nn.Module) -> None:
        """What is stored, parameters and buffers, is all that the logits depend on."""
        stored = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        own = dict(other.named_parameters()) | dict(other.named_buffers())
        if {k: v.shape for k, v in stored.items()} != {k: v.shape for k, v in own.items()}:
            raise self.fault("has other parameters when it is built again")
        with torch.no_grad(), evaluating(self.model), evaluating(other):
            for name, tensor in own.items():
                tensor.copy_(stored[name])
            logits = self.logits(self.model, self.images, "evaluation")
            if not _agree(self.logits(other, self.images, "evaluation"), logits):
                raise self.fault(
                    "gives other logits when it is built again with the same weights; "
                    "register its constants, as by register_buffer"
                )
        self.check_resuming(other)

    def check_resuming(self, other: nn.Module) -> None:
        """What training changes is stored, too: with it another copy trains on as this one does.

        Args:
            other: a copy that has seen no images.
        """
        model = self.copied()
        with torch.no_grad():
            seed_draws(1)
            model.train()
            for _ in range(STEPS):
                self.logits(model, self.images, "training")
            stored = dict(model.named_parameters()) | dict(model.named_buffers())
            passing = passing_buffers(model)
            for name, tensor in (*other.named_parameters(), *other.named_buffers()):
                if name not in passing:
                    tensor.copy_(stored[name])
            for mode in ("evaluation", "training"):
                found = []
                for one in (model, other):
                    seed_draws(2)
                    one.train(mode == "training")
                    found.append(self.logits(one, self.images, mode))
                if not _agree(*found):
                    raise self.fault(
                        "keeps what training changes outside its parameters and buffers, so it "
                        "could not be stored or resumed; register it, as by register_buffer, "
                        "and not with persistent=False"
                    )
        before = plain_numbers(self.model)
        changed = [name for name, n in plain_numbers(model).items() if before.get(name) != n]
        if changed:
            self.warn(
                f"changes {', '.join(changed)} in training, which no checkpoint holds: if it "
                "decides anything, a resumed run is another one; register it as a buffer"
            )

    def check_methods(self) -> None:
        """Methods of the protocol's names are those, and do not only happen to be called so."""
        try:
            body_parameters(self.model, self.image_size)
        except ValueError as error:
            raise ValueError(f"{self.place}: {error}") from None
        if prepare := preparation(self.copied()):
            images = torch.randn(PREPARATION_IMAGES, *self.images.shape[1:])
            asked = "takes the training images; rename it if it means something else"
            with running(self.place, f"has a `prepare`, which {asked}"):
                prepare(images)

    def warn_of_costs(self) -> None:
        """Say which layers the count of multiply-accumulates leaves out."""
        if unknown := measure_macs(self.model, self.image_size).unknown:
            names = ", ".join(unknown)
            self.warn(f"runs layers whose multiply-accumulates are not known: {names}")

    def warn_of_export(self) -> None:
        """Say where the exporter would not take it."""
        batch = torch.export.Dim("batch", min=1, max=65_536)
        model = self.copied().eval()
        try:
            with quiet():
                torch.export.export(model, (self.images[:2],), dynamic_shapes=({0: batch},))
        except Exception as error:  # the exporter's errors have no common base
            reason = describe(error, self.place)
            if "specialized it to be a constant" in reason:
                reason = "the size of the batch becomes a constant; take x.size(0), not len(x)"
            elif "data-dependent" in reason:
                where = reason[reason.rfind(" (line ") :] if " (line " in reason else ""
                reason = f"what it does depends on values in the images; take torch.where{where}"
            self.warn(f"cannot be exported: {reason}")

    def warn(self, text: str) -> None:
        warnings.warn(f"{self.place} {text}", PlaceWarning, stacklevel=3)


def _agree(some: Tensor, others: Tensor) -> bool:
    scale = max(1.0, others.abs().max().item())
    return bool((some - others).abs().max() <= TOLERANCE * scale)
