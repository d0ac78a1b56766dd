"""Fingerprints: a hash of a request's inputs, under which an answer to them may be kept.

Source: BLAKE2, RFC 7693; 32 bytes are kept whole, so that no two inputs meet by chance or by will.
"""

from hashlib import blake2b
from typing import Final

import numpy as np

from gateway.core.tensors import BYTES, Signature, Tensors

MAX_INPUT_BYTES: Final = 1024 * 1024
"""Larger requests are not looked up: hashing these already takes 1 to 2 ms."""
DIGEST_BYTES: Final = 32
_ELEMENT_BYTES: Final = 64
"""What an element of BYTES weighs beside its bytes: reading it costs as much as hashing these."""


def fingerprint(signature: Signature, tensors: Tensors) -> bytes | None:
    """Hash inputs so that equal bytes in equal shapes, and nothing else, give an equal hash.

    -0.0 and 0.0 differ, and so do NaNs of other payloads: what is compared is bytes.

    Args:
        signature: of the version; its inputs give the order.
        tensors: checked against it.

    Returns:
        32 bytes, or None where the inputs hold more than `MAX_INPUT_BYTES`.
    """
    parts: list[bytes] = []
    left = MAX_INPUT_BYTES
    for spec in signature.inputs:
        tensor = tensors[spec.name]
        parts.append(f"{spec.datatype}{tensor.shape}".encode())
        if spec.datatype == BYTES:
            left -= tensor.size * _ELEMENT_BYTES
            if left < 0:
                return None
            # The shape says how many lengths there are, and they say where each element ends.
            elements: list[bytes] = tensor.reshape(-1).tolist()
            lengths = np.fromiter(map(len, elements), "<u8", len(elements))
            left -= int(lengths.sum())
            parts.append(lengths.tobytes())
            parts += elements
        else:
            left -= tensor.nbytes
            if left >= 0:
                parts.append(tensor.tobytes())
        if left < 0:
            return None
    return blake2b(b"".join(parts), digest_size=DIGEST_BYTES).digest()
