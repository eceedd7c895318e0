#!/bin/sh
# A plugin of node-problem-detector: asks tracer on this node how it stands.
#
#   tracer.sh [sick|warning]    what is a problem: that the node kills packets (the default), or that
#                               it soon will
#
# Only for want of what all pods of the node share: its neighbour tables, its connection tracking. A
# pod's own network policy or full receive buffer is no reason to cordon a node. Nor is a table that
# thrashes, which costs time and loses nothing yet: that is a warning.
#
# Exit 0: no problem. 1: the problem is there. 2: nobody knows, for the agent does not answer or does
# not see all. One line on stdout says what.
#
# TRACER is the program (default: tracer), TRACER_AGENT the agent's address, as for tracer itself.
# It needs a POSIX shell, sed, awk and grep, nothing else: tracer writes one JSON value a line.

problem=${1:-sick}
case $problem in
sick | warning) ;;
*)
    echo "usage: tracer.sh [sick|warning]"
    exit 2
    ;;
esac

verdict=$(${TRACER:-tracer} why --output json 2>&1)
if [ $? -ne 0 ]; then
    # Its last line says why.
    printf '%s\n' "$verdict" | sed -n '$p'
    exit 2
fi

# The value of a key of the outermost object, and the first sentence.
health=$(printf '%s\n' "$verdict" | sed -n 's/^  "health": "\([a-z_]*\)",\{0,1\}$/\1/p')
sentence=$(printf '%s\n' "$verdict" |
    sed -n '/^  "sentences": \[$/{n;s/^ *"\(.*\)",\{0,1\}$/\1/;s/\\\(["\\]\)/\1/g;p;q;}')
if [ -z "$health" ] || [ -z "$sentence" ]; then
    echo "tracer why wrote something else than a verdict"
    exit 2
fi

case $problem in
sick) rules='table-full:node|conntrack-full:node' ;;
warning) rules='table-fills:omen|table-thrashes:node|conntrack-full:omen' ;;
esac
# The sentence of the first finding of these rules that weighs so.
found=$(printf '%s\n' "$verdict" | awk -v rules="^($rules)\$" '
    function value() {
        sub(/^ *"[a-z]*": "/, "")
        sub(/",?$/, "")
        gsub(/\\"/, "\"")
        gsub(/\\\\/, "\\")
        return $0
    }
    /^    [{]$/ { rule = weighs = sentence = "" }
    /^      "rule": "/ { rule = value() }
    /^      "weight": "/ { weighs = value() }
    /^      "sentence": "/ { sentence = value() }
    /^    [}],?$/ && (rule ":" weighs) ~ rules { print sentence; exit }
')
if [ -n "$found" ]; then
    printf '%s\n' "$found"
    exit 1
fi
# Without these hooks silence proves nothing.
if printf '%s\n' "$verdict" | grep -Eq '^ *"[a-z ]*: the hook (neigh|dns) is '; then
    printf '%s\n' "$sentence"
    exit 2
fi
printf '%s\n' "$sentence"
exit 0
