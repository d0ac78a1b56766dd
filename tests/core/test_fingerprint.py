from math import prod

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gateway.core.fingerprint import MAX_INPUT_BYTES, fingerprint
from gateway.core.tensors import BYTES, DTYPES, Array, Signature, TensorSpec

NUMBERS = sorted(set(DTYPES) - {BYTES})
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
MOST = 3**3
"""Elements of the largest of them."""


def signature_of(**datatypes: str) -> Signature:
    """A signature with inputs of these datatypes."""
    inputs = tuple(
        TensorSpec(name=name, datatype=datatype, shape=(-1,))
        for name, datatype in datatypes.items()
    )
    return Signature(inputs=inputs, outputs=(), batched=True)


def texts(*elements: bytes, shape: tuple[int, ...] | None = None) -> Array:
    """A tensor of BYTES."""
    tensor = np.empty(len(elements), dtype=object)
    tensor[:] = elements
    return tensor.reshape(shape or (len(elements),))


def numbers(datatype: str) -> st.SearchStrategy[Array]:
    """Tensors of few bit patterns each, one of which may be any: a NaN of any payload, too.

    Which pattern stands where is drawn as one number, whose digits they are: that is much quicker
    than to draw each element.
    """
    dtype = DTYPES[datatype]
    width = 1 if datatype == "BOOL" else 8 * dtype.itemsize

    def laid_out(shape: tuple[int, ...], places: int, some: int) -> Array:
        patterns = (0, 1, 1 << (width - 1), some)
        chosen = [patterns[places >> 2 * at & 3] for at in range(prod(shape))]
        bits: Array = np.array(chosen, dtype=f"<u{dtype.itemsize}").reshape(shape)
        return bits.view(dtype)

    return st.builds(laid_out, SHAPES, st.integers(0, 4**MOST - 1), st.integers(0, 2**width - 1))


def bytes_tensors() -> st.SearchStrategy[Array]:
    """Tensors of BYTES, of few and short elements, so that joined bytes often meet."""
    element = st.sampled_from([b"", b"a", b"b", b"aa", b"ab", b"\0", b"(2,)"])
    return arrays.arrays(np.dtype(object), SHAPES, elements=element, fill=st.nothing())


def contents(tensor: Array) -> object:
    """What makes two tensors equal here."""
    held = tensor.tolist() if tensor.dtype.hasobject else tensor.tobytes()
    return (tensor.shape, held)


@given(data=st.data(), first=st.sampled_from(NUMBERS), second=st.sampled_from(NUMBERS))
def test_two_fingerprints_are_equal_if_and_only_if_shapes_and_bytes_are(
    data: st.DataObject, first: str, second: str
) -> None:
    """Numbers of any kind: no two inputs meet that differ in a bit or in an extent."""
    signature = signature_of(x=first, y=second)
    one, other = (
        {"x": data.draw(numbers(first)), "y": data.draw(numbers(second))} for _ in range(2)
    )
    same = all(contents(one[name]) == contents(other[name]) for name in one)
    assert (fingerprint(signature, one) == fingerprint(signature, other)) == same
    copies = {name: np.array(tensor, order="F") for name, tensor in reversed(one.items())}
    assert fingerprint(signature, one) == fingerprint(signature, copies)


@given(bytes_tensors(), bytes_tensors(), bytes_tensors(), bytes_tensors())
@example(texts(b"a", b"ab"), texts(), texts(b"aa", b"b"), texts())
@example(texts(b"a"), texts(b"b"), texts(b"a", b"b"), texts())
def test_elements_of_bytes_keep_their_borders(
    one: Array, two: Array, three: Array, four: Array
) -> None:
    """Neither the end of an element nor that of a tensor may be shifted unseen."""
    signature = signature_of(x=BYTES, y=BYTES)
    same = (contents(one), contents(two)) == (contents(three), contents(four))
    left = fingerprint(signature, {"x": one, "y": two})
    right = fingerprint(signature, {"x": three, "y": four})
    assert (left == right) == same


def test_zeros_of_both_signs_and_nans_of_two_payloads_differ() -> None:
    """What a model may tell apart is told apart."""
    signature = signature_of(x="FP32")
    bits = np.array([0x00000000, 0x80000000, 0x7FC00000, 0x7FC00001], dtype="<u4").view("<f4")
    found = {fingerprint(signature, {"x": bits[index : index + 1]}) for index in range(4)}
    assert len(found) == 4
    assert {len(key or b"") for key in found} == {32}


def test_large_inputs_have_no_fingerprint() -> None:
    """Beyond a bound that counts all inputs, and elements beside bytes, nothing is hashed."""
    signature = signature_of(x="UINT8", y=BYTES)
    full = {"x": np.zeros(MAX_INPUT_BYTES, dtype="u1"), "y": texts()}
    assert fingerprint(signature, full) is not None
    assert fingerprint(signature, {**full, "y": texts(b"")}) is None
    assert fingerprint(signature, {**full, "x": np.zeros(MAX_INPUT_BYTES + 1, "u1")}) is None
    many = texts(*[b""] * (MAX_INPUT_BYTES // 64))
    assert fingerprint(signature, {"x": np.zeros(0, "u1"), "y": many}) is not None
    assert fingerprint(signature, {"x": np.zeros(1, "u1"), "y": many}) is None
    long = texts(b"a" * MAX_INPUT_BYTES)
    assert fingerprint(signature, {"x": np.zeros(0, "u1"), "y": long}) is None
