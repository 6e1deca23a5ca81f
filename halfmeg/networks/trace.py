"""From a module to a `Graph`: torch.export writes the program, and each operator is lowered.

What only moves values (views, slices, splits, flips, padding) is not lowered one by one: it is run
on the indices of the values, so any chain of such operators becomes one index.
"""

from __future__ import annotations

import io
import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from halfmeg.data.shape import ImageSize, image_shape
from halfmeg.errors import one_line, with_kind
from halfmeg.networks.graph import Graph, Input, Shape, in_order
from halfmeg.networks.lowering import LOWERINGS, Lowering
from halfmeg.networks.mixing import MIXING
from halfmeg.networks.protocol import evaluating
from halfmeg.networks.values import Value, whole

MOVES = {
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand",
    "expand_as", "permute", "transpose", "t", "numpy_T", "movedim", "slice", "select", "narrow",
    "split", "split_with_sizes", "chunk", "unbind", "flip", "roll", "repeat", "tile", "alias",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "index_select", "repeat_interleave",
    "swapaxes", "mT", "adjoint", "unsafe_split", "unsafe_chunk", "view_as", "squeeze_copy",
}  # fmt: skip
MOVES_OF_FLOATS = {"upsample_nearest2d", "_upsample_nearest_exact2d"}
UNCHANGED = {
    "to", "_to_copy", "type_as", "dropout", "feature_dropout", "alpha_dropout", "lift_fresh_copy",
    "detach", "contiguous", "clone",
}  # fmt: skip
FUNCTIONS = {
    "silu", "sigmoid", "tanh", "gelu", "leaky_relu", "elu", "selu", "celu", "hardswish", "mish",
    "hardsigmoid", "hardtanh", "softplus", "softsign", "logsigmoid", "log_sigmoid", "relu",
    "relu6", "clamp", "clamp_min", "clamp_max", "abs", "neg", "exp", "square", "pow", "sqrt",
    "threshold", "hardshrink", "softshrink", "tanhshrink", "erf", "sin", "cos", "prelu", "sign",
    "reciprocal", "rsqrt", "log1p", "expm1", "atan", "rsub",
}  # fmt: skip
CLAMPS = {"relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"}
OPERATORS = LOWERINGS | MIXING
ARITHMETIC = {"add", "sub", "mul", "div", "minimum", "maximum"}


def trace(model: nn.Module, image_size: ImageSize) -> Graph:
    """Trace a network in evaluation mode, for one image of that size.

    Raises:
        ValueError: a network that torch.export does not trace, or an operator that integers cannot
            follow; it is named.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    image = torch.zeros(1, *image_shape(image_size), device=device)
    try:
        with evaluating(model), quiet(), torch.no_grad():
            program = torch.export.export(model, (image,))
            if any(_changes_its_input(node) for node in program.graph.nodes):
                program = program.run_decompositions({})  # writes x.relu_() as relu(x)
    except Exception as error:  # whatever a user's code, or torch about it, raises
        reason = one_line(error, 200)
        raise ValueError(f"{type(model).__name__} cannot be traced: {reason}") from None
    leaves = {path for path, module in model.named_modules() if not any(module.children())}
    try:
        return _lower(program, image_shape(image_size), leaves)
    except ValueError:
        raise
    except Exception as error:  # programs of a user's network hold more than is known here
        told = with_kind(error, 200)
        raise ValueError(f"{type(model).__name__} cannot be traced: {told}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' own chatter from the user's screen."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _changes_its_input(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _lower(program: torch.export.ExportedProgram, shape: Shape, leaves: set[str]) -> Graph:
    state = {**program.state_dict, **program.constants}
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    image = Input("image", shape, ())
    program.graph.eliminate_dead_code()  # attention's mean over heads, which nobody asks for
    values: dict[torch.fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            values[node] = state[names[node.name]].detach().cpu()
        elif node.op == "placeholder":
            values[node] = whole(image)
        elif node.op == "call_function":
            values[node] = _call(node, values, leaves)
    (returned, *others) = program.graph.output_node().args[0]
    logits = values.get(returned)
    if others or not isinstance(logits, Value) or logits.index.dim() != 2:
        raise ValueError("a network is expected to return one tensor of logits B×K")
    return Graph(image, in_order(Lowering(returned.name, returned.name).node(logits)))


def _call(node: torch.fx.Node, values: dict[torch.fx.Node, Any], leaves: set[str]) -> Any:
    """Return what an operator makes of its arguments: a value, or a constant of constants."""
    args: Any = torch.fx.map_arg(node.args, values.__getitem__)
    kwargs: Any = torch.fx.map_arg(node.kwargs, values.__getitem__)
    given: list[Value] = []
    torch.fx.node.map_aggregate(
        (args, kwargs), lambda a: given.append(a) if isinstance(a, Value) else None
    )
    target: Any = node.target
    if target is operator.getitem and args[1] >= len(args[0]):
        return _places(node, leaves)
    if target is operator.getitem or not given:
        return target(*args, **kwargs)
    kind = target._schema.name.removeprefix("aten::")
    if target._schema.overload_name == "other" and kind in ("max", "min"):
        kind += "imum"  # of two tensors
    if kind == "_assert_tensor_metadata":  # stands before `to`, and gives nothing
        return None
    constants = [a.name for a in node.all_input_nodes if isinstance(values[a], Tensor)]
    weights = ",".join(constants) or node.name
    lowering = Lowering(_name(node, leaves), str(target), weights, bool(constants))
    if kind in OPERATORS:
        return OPERATORS[kind](lowering, **_bind(target, args, kwargs))
    if kind in UNCHANGED:
        if not node.meta["val"].is_floating_point():
            raise lowering.unknown("numbers that are not floats")
        return args[0]
    if kind in MOVES and isinstance(args[0], Tensor):  # a constant that takes a map's shape
        if kind not in ("expand_as", "view_as"):
            raise lowering.unknown()
        shape = node.meta["val"].shape
        return args[0].expand(shape) if kind == "expand_as" else args[0].reshape(shape)
    if kind in MOVES or kind in MOVES_OF_FLOATS:
        return _move(target, args, kwargs, torch.float64 if kind in MOVES_OF_FLOATS else torch.long)
    if kind in ARITHMETIC and len(given) == 2:
        return lowering.arithmetic(kind, target, args, kwargs)
    if kind in ARITHMETIC or kind in FUNCTIONS:
        return lowering.constant_or_function(kind, target, args, kwargs, kind in CLAMPS)
    raise lowering.unknown()


def _places(node: torch.fx.Node, leaves: set[str]) -> None:
    """Take the places of maxima, which torch.export writes also where nobody asks for them."""
    if node.users:
        (source,) = node.all_input_nodes
        lowering = Lowering(_name(source, leaves), str(source.target))
        raise lowering.unknown("the places of its maxima")


def _name(node: torch.fx.Node, leaves: set[str]) -> str:
    """Return the module that calls an operator, and the operator where it calls several."""
    modules = list(node.meta.get("nn_module_stack", {}).values())
    path = modules[-1][0] if modules else ""
    return path if path in leaves and path else f"{path}.{node.name}".lstrip(".")


def _bind(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return an operator's arguments by name, what was left out included; `self` is `self_`."""
    bound = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(args):
            value = args[position]
        else:
            value = kwargs.get(argument.name, argument.default_value)
        bound["self_" if argument.name == "self" else argument.name] = value
    return bound


def _move(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype = torch.long
) -> Any:
    """Run an operator that only moves values on their places, as numbers of a type it takes."""
    nodes = []

    def places(argument: Any) -> Any:
        if not isinstance(argument, Value):
            return argument
        nodes.append(argument.node)
        return argument.index.to(dtype)

    moved = target(
        *torch.fx.node.map_aggregate(args, places),
        **torch.fx.node.map_aggregate(kwargs, places),
    )
    if isinstance(moved, Tensor):
        return Value(nodes[0], moved.long())
    return tuple(Value(nodes[0], part.long()) for part in moved)
