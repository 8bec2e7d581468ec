# What users read of the action plugin plugins/action/inference_preflight.py, which does the work.

DOCUMENTATION = r"""
module: inference_preflight
short_description: Refuse wrong input from the inventory's variables
version_added: "0.1.0"
description:
  - Looks at every variable whose name carries a prefix of this collection's roles, and at what they say together.
  - Fails with all problems at once, each with the variable's name and the fix. Changes nothing.
author: The Headrace authors
options:
  role:
    type: str
    description: Look only at the spelling of variables that carry this role's prefix. Each role does so itself.
    default: ""
"""

EXAMPLES = r"""
- name: Refuse wrong input
  headrace.inference.inference_preflight:
"""

RETURN = r"""
problems:
  description: What is wrong, one sentence each.
  type: list
  elements: str
  returned: always
summary:
  description: What the inventory asks for, a line for each kind of thing.
  type: list
  elements: str
  returned: when no role is named
"""
