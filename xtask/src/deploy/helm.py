"""Renders and checks a chart with Helm's library: commands and results as JSON."""

import json
import sys

import helm_python as helm


def main() -> None:
    question = json.load(sys.stdin)
    chart = question["chart"]
    if question["do"] == "render":
        with helm.Chart.load(chart) as loaded:
            answer = loaded.render(
                question["values"], name="sallyport", namespace=question["namespace"]
            )
    elif question["do"] == "lint":
        answer = helm.lint(
            chart,
            question["values"],
            strict=True,
            namespace=question["namespace"],
            kube_version=question["kubeVersion"],
        )
    else:
        raise ValueError(question["do"])
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
