#!/usr/bin/env bash
# What a pipeline runs: the builds of qcompile.toml, then a report of all their bundles, whatever came of them.
#
#   QCOMPILE_CONFIG    the file; qcompile.toml
#   QCOMPILE_BUNDLES   the folder that it names as output; build
#   QCOMPILE_ONLY      models, targets or builds, separated by spaces; all
#   QCOMPILE_JOBS      builds at once; 1
#   QCOMPILE_LOCKED    true: refuse what is not as in qcompile.lock
#   QCOMPILE_BASELINE  a folder or a URL of earlier bundles to compare with; none
#   QCOMPILE_CACHE_DIR     folder of what builds share, to be kept between pipelines; the user's cache
#   QCOMPILE_REMOTE_CACHE  URL of what machines share, which pull and merge requests only read; none
#   QCOMPILE_REPORT    folder for report.html, junit.xml, summary.md, findings.sarif; qcompile-report
#
# The exit code is that of the builds: 0 all is well, 1 a gate failed, 2 something could not be built.
set -euo pipefail

bundles=${QCOMPILE_BUNDLES:-build}
report=${QCOMPILE_REPORT:-qcompile-report}
options=(--config "${QCOMPILE_CONFIG:-qcompile.toml}" --jobs "${QCOMPILE_JOBS:-1}")
read -ra names <<<"${QCOMPILE_ONLY:-}"
for name in "${names[@]}"; do options+=(--only "$name"); done
if [[ -n ${QCOMPILE_CACHE_DIR:-} ]]; then options+=(--cache-dir "$QCOMPILE_CACHE_DIR"); fi
request=${CI_MERGE_REQUEST_IID:-}
if [[ ${GITHUB_EVENT_NAME:-} == pull_request* ]]; then request=$GITHUB_EVENT_NAME; fi
if [[ -n ${QCOMPILE_REMOTE_CACHE:-} && -n $request ]]; then
    options+=(--remote-cache-read-only)
fi
if [[ ${QCOMPILE_LOCKED:-false} == true ]]; then options+=(--locked); fi

mkdir -p "$report"
status=0
qcompile build "${options[@]}" || status=$?

if [[ -n $(find "$bundles" -name manifest.json -print -quit 2>/dev/null) ]]; then
    given=(--output "$report/report.html" --junit "$report/junit.xml" --markdown "$report/summary.md")
    given+=(--sarif "$report/findings.sarif")
    if [[ -n ${QCOMPILE_BASELINE:-} ]]; then given+=(--baseline "$QCOMPILE_BASELINE"); fi
    said=0
    qcompile report "$bundles" "${given[@]}" || said=$?
    # 1 is a gate that failed, which the builds have told of; beyond that the report itself is wrong.
    if ((said > 1 && status == 0)); then status=$said; fi
    if [[ -n ${GITHUB_STEP_SUMMARY:-} && -f $report/summary.md ]]; then
        cat "$report/summary.md" >>"$GITHUB_STEP_SUMMARY"
    fi
else
    echo "there is no bundle in $bundles, so there is no report" >&2
fi
exit "$status"
