"""Compiles the Python of a document, and looks up what it uses of the modules that it imports."""

import ast
import importlib
import sys


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        tree = ast.parse(file.read())
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)
                modules[name.asname or name.name.split(".")[0]] = sys.modules[name.name if name.asname else name.name.split(".")[0]]
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    sys.exit(f"line {node.lineno}: {node.module} has no {name.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            if not hasattr(modules[node.value.id], node.attr):
                sys.exit(f"line {node.lineno}: {node.value.id} has no {node.attr}")


main()
