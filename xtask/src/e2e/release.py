"""Installs, upgrades and removes a release with Helm's library: command and answer as JSON."""

import json
import sys

import helm_python as helm


def main() -> None:
    question = json.load(sys.stdin)
    options = {
        key: question[key]
        for key in ("kubeconfig_path", "kube_context", "namespace")
        if question.get(key) is not None
    }
    name = question["name"]
    with helm.Config(**options) as config:
        if question["do"] == "install":
            answer = config.install(
                question["chart"], name, question["values"], namespace=question["namespace"]
            )
        elif question["do"] == "upgrade":
            answer = config.upgrade(
                question["chart"],
                name,
                question["values"],
                namespace=question["namespace"],
                reset_values=True,
            )
        elif question["do"] == "uninstall":
            answer = config.uninstall(name, ignore_not_found=True)
        else:
            raise ValueError(question["do"])
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
