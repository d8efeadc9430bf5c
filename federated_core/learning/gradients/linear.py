"""Gradient rules of matrix products."""

from collections.abc import Mapping
from typing import Final

from federated_core.learning.gradients.application import Application, Gradients, Rule
from federated_core.learning.gradients.builder import Expr, flattened


def gemm(at: Application) -> Gradients:
    """Differentiate y = alpha A' B' + beta C, each of A and B transposed if its flag says so."""
    a, b, g = at.input(0), at.input(1), at.g
    flip_a, flip_b = bool(at.integer("transA", 0)), bool(at.integer("transB", 0))
    alpha, beta = at.number("alpha", 1.0), at.number("beta", 1.0)
    scaled = g if alpha == 1.0 else g * alpha
    multiply = at.builder.matmul_2d
    ga = gb = gc = None
    if at.wants(0) and flip_a:
        ga = multiply(b, scaled, transpose_a=flip_b, transpose_b=True)
    elif at.wants(0):
        ga = multiply(scaled, b, transpose_b=not flip_b)
    if at.wants(1) and flip_b:
        gb = multiply(scaled, a, transpose_a=True, transpose_b=flip_a)
    elif at.wants(1):
        gb = multiply(a, scaled, transpose_a=not flip_a)
    if at.wants(2):
        gc = (g if beta == 1.0 else g * beta).sum_to(at.input(2).shape)
    return [ga, gb, gc]


def matmul(at: Application) -> Gradients:
    """Differentiate y = A B as numpy.matmul: matrices, stacks of matrices, vectors."""
    a, b, g = at.input(0), at.input(1), at.g
    left = a.reshape((1, *a.shape)) if a.rank == 1 else a
    right = b.reshape((*b.shape, 1)) if b.rank == 1 else b
    if a.rank == 1 or b.rank == 1:
        batch = g.shape[: g.rank - (a.rank > 1) - (b.rank > 1)]
        rows = (left.shape[-2],) if a.rank > 1 else (1,)
        g = g.reshape((*batch, *rows, right.shape[-1]), None if b.rank == 1 == a.rank else _unsqueezed(at, g))
    ga = _left(at, g, left, right) if at.wants(0) else None
    gb = _right(at, g, left, right) if at.wants(1) else None
    return [ga and ga.reshape(a.shape, a), gb and gb.reshape(b.shape, b)]


def _unsqueezed(at: Application, g: Expr) -> Expr:
    axis = g.rank if at.input(1).rank == 1 else g.rank - 1
    shape = (*g.shape[:axis], 1, *g.shape[axis:])
    return at.builder.apply("Unsqueeze", g, at.builder.integers([axis]), shape=shape)


def _left(at: Application, g: Expr, a: Expr, b: Expr) -> Expr:
    if g.rank == 2:
        return at.builder.matmul_2d(g, b, transpose_b=True)
    product = at.builder.apply("MatMul", g, _swapped(b), shape=(*g.shape[:-1], a.shape[-1]))
    return product.sum_to(a.shape)


def _right(at: Application, g: Expr, a: Expr, b: Expr) -> Expr:
    if g.rank == 2:
        return at.builder.matmul_2d(a, g, transpose_a=True)
    if b.rank == 2:  # A stack times one matrix: one product of all rows at once.
        rows = a.reshape((flattened(a.shape[:-1]), a.shape[-1]))
        columns = g.reshape((flattened(g.shape[:-1]), g.shape[-1]))
        return at.builder.matmul_2d(rows, columns, transpose_a=True)
    product = at.builder.apply("MatMul", _swapped(a), g, shape=(*g.shape[:-2], a.shape[-1], g.shape[-1]))
    return product.sum_to(b.shape)


def _swapped(x: Expr) -> Expr:
    return x.transpose([*range(x.rank - 2), x.rank - 1, x.rank - 2])


def einsum(at: Application) -> Gradients:
    """Differentiate y = a sum of products by letters: exchange the operand's letters with the output's."""
    terms, result = _letters(at)
    gradients: list[Expr | None] = []
    for slot, term in enumerate(terms):
        if not at.wants(slot):
            gradients.append(None)
            continue
        if len(set(term)) != len(term):
            raise at.refusal(f"the diagonal '{term}' is not supported")
        others = [(other, at.input(place)) for place, other in enumerate(terms) if place != slot]
        known = set(result).union(*(other for other, _ in others))
        kept = "".join(letter for letter in term if letter in known)
        target = at.input(slot)
        sizes = dict(zip(term, target.shape, strict=True))
        equation = ",".join([result, *(other for other, _ in others)]) + "->" + kept
        shape = tuple(sizes[letter] for letter in kept)
        found = at.builder.apply("Einsum", at.g, *(value for _, value in others), shape=shape, equation=equation)
        lost = [place for place, letter in enumerate(term) if letter not in known]
        if lost:  # What only this operand had was added up: it comes back by broadcasting.
            wide = tuple(1 if letter not in known else sizes[letter] for letter in term)
            found = at.builder.apply("Unsqueeze", found, at.builder.integers(lost), shape=wide)
            found = found.expand(target.shape, target)
        gradients.append(found)
    return gradients


def _letters(at: Application) -> tuple[list[str], str]:
    """Return the letters of operands and result, with the dots written out."""
    equation = at.word("equation", "").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        counts = {letter: left.count(letter) for letter in left if letter.isalpha()}
        result = "..." * ("..." in left) + "".join(sorted(letter for letter, count in counts.items() if count == 1))
    spare = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
    hidden = [at.input(slot).rank - len(term.replace("...", "")) for slot, term in enumerate(terms) if "..." in term]
    dots = "".join(spare[: max(hidden, default=0)])
    if any(count != len(dots) for count in hidden):
        raise at.refusal("dots that stand for different numbers of axes are not supported")
    return [term.replace("...", dots) for term in terms], result.replace("...", dots)


RULES: Final[Mapping[str, Rule]] = {"Einsum": einsum, "Gemm": gemm, "MatMul": matmul}
"""Rules by operator."""
