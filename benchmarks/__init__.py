"""Speed and memory of our fast paths beside the plain computation: ``python -m benchmarks CASE``.

A case is one file in ``benchmarks/cases`` that defines ``CASE`` (:class:`benchmarks.case.Case`);
``docs/benchmarks.md`` has the figures and says how they are taken.
"""
