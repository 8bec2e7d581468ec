#!/usr/bin/python
# Copyright The Headrace authors
# Apache-2.0

"""Ask a Gateway for a model several times, and fail unless each answer is of one of some models."""

from __future__ import annotations

# ruff: noqa: E402

DOCUMENTATION = r"""
module: inference_answers
short_description: Ask a Gateway for a model several times, and fail unless each answer is of one of some models
version_added: "0.1.0"
description:
  - Asks for completions of O(model), which an InferenceModelRewrite splits between others.
  - Looks at the model that each answer names.
  - What was changed takes a moment to reach the endpoint pickers. Until O(settle) answers of other models do not count.
  - A status other than 200 is no matter of settling once there was an answer with 200.
author: The Headrace authors
options:
  url:
    type: str
    required: true
    description: Where requests go, as C(http://HOST:PORT), with the path of the route, if it has one.
  host:
    type: str
    description: The Host header. Empty is that of O(url).
    default: ""
  model:
    type: str
    required: true
    description: Name to ask for.
  models:
    type: list
    elements: str
    required: true
    description: The models that may answer.
  requests:
    type: int
    description: Right answers in a row that are needed.
    default: 20
  settle:
    type: int
    description: Seconds for that.
    default: 60
  timeout:
    type: int
    description: Seconds one request may take.
    default: 60
"""

EXAMPLES = r"""
- name: Both adapters answer for sql
  headrace.inference.inference_answers:
    url: http://127.0.0.1:8080
    model: sql
    models: [sql-v1, sql-v2]
"""

RETURN = r"""
answers:
  description: How many answers each model gave, by name.
  type: dict
  returned: success
"""

import http.client
import json
import time
import urllib.parse

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.smoke import Failed, ask


def model_of(answer):
    """The model that an answer names; "" for one that is no completion."""
    try:
        return str(json.loads(answer["body"])["model"])
    except (ValueError, KeyError, TypeError):
        return ""


def watch(once, models, wanted, settle, clock=time.monotonic, sleep=time.sleep):
    """Call `once` until `wanted` answers in a row are right. Returns how many each model gave; raises Failed."""
    deadline = clock() + settle
    seen, row, last, worked = {}, 0, "nothing", False
    while row < wanted:
        if clock() > deadline:
            raise Failed(f"after {settle} s {row} of {wanted} answers in a row were right; the last wrong one: {last}")
        answer = once()
        name = model_of(answer)
        if answer["status"] == 200 and name in models:
            seen[name] = seen.get(name, 0) + 1
            row, worked = row + 1, True
            continue
        last = f"status {answer['status']}, model '{name}': {answer['body'][:300].strip()}"
        if answer["status"] != 200 and worked:
            raise Failed(f"after right answers came {last}")
        row, seen = 0, {}
        sleep(0.5)
    return seen


def main():
    """Ansible's entry."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "host": {"type": "str", "default": ""},
            "model": {"type": "str", "required": True},
            "models": {"type": "list", "elements": "str", "required": True},
            "requests": {"type": "int", "default": 20},
            "settle": {"type": "int", "default": 60},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    options = module.params
    if module.check_mode:
        module.exit_json(changed=False, answers={}, msg=f"{options['requests']} requests would be sent")
    url = options["url"].rstrip("/")
    target = {"path": urllib.parse.urlsplit(url).path, "host": options["host"]}

    def once():
        return ask(url, target, "/v1/completions", options["model"], False, 8, options["timeout"])

    try:
        answers = watch(once, options["models"], options["requests"], options["settle"])
    except Failed as error:
        module.fail_json(msg=f"{options['model']} at {options['url']}: {error}")
    except http.client.HTTPException as error:
        module.fail_json(msg=f"{options['model']} at {options['url']}: the Gateway broke off its answer: {error!r}")
    module.exit_json(changed=False, answers=answers)


if __name__ == "__main__":
    main()
