"""The side on which a matrix is projected to rank r. Imports no torch.

W and its gradient G are (m, n). On the right P is (r, n) and R = G P^T is (m, r); on the left P is
(m, r) and R = P^T G is (r, n). P is on the shorter side, on the right of what is square (GaLore,
arXiv 2403.03507, section 4.2, and its official code).
"""


def on_the_right(shape: tuple[int, ...]) -> bool:
    """Whether a matrix of that shape is projected on the right."""
    return shape[0] >= shape[1]


def projected(shape: tuple[int, ...], r: int, right: bool) -> tuple[int, int]:
    """The shape of R."""
    return (shape[0], r) if right else (r, shape[1])


def projection(shape: tuple[int, ...], r: int, right: bool) -> tuple[int, int]:
    """The shape of P."""
    return (r, shape[1]) if right else (shape[0], r)
