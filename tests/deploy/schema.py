"""Validates YAML or JSON files (arguments from the second on) by the JSON schema in the first; prints those that do not fit."""

import json
import sys

import jsonschema
import yaml

with open(sys.argv[1], encoding="utf-8") as file:
    schema = json.load(file)
kind = jsonschema.validators.validator_for(schema)
kind.check_schema(schema)
validator = kind(schema)
for path in sys.argv[2:]:
    with open(path, encoding="utf-8") as file:
        errors = list(validator.iter_errors(yaml.safe_load(file)))
    if errors:
        print(path, *(f"{error.json_path}: {error.message[:200]}" for error in errors[:3]), sep="\n  ")
