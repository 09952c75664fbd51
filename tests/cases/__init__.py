"""What users really brought, and what becomes of it: one function a case, one module a kind.

``python -m tests.cases`` runs all of them and writes ``docs/cases.md``; ``test_cases.py`` runs each as a test
and compares its outcome with its row there.
"""
