#!/bin/bash
# Compares rules files of this checkout with what they were in the commit that
# it branched off from: wallprobe lab diff for each, with the reports that a
# pull request wants.
#
#   contrib/ci/diff.sh --base origin/main firewall/edge.nft -- SCENARIO... --inside eth1 --fail-on worse
#
# What stands after -- goes to wallprobe lab diff as it is. --old FILE compares
# with that file instead of with git's. --out FOLDER takes the reports (default:
# wallprobe-report): NAME.txt, .json, .xml (JUnit), .md and .html for each rules
# file, and summary.md. Where GITHUB_STEP_SUMMARY and GITHUB_OUTPUT are set, as in GitHub
# Actions, the summary and "changed" and "broke" go there.
#
# Exit status, the highest of all files: 0 nothing that counts, 1 something that
# counts by --fail-on, 2 wrong usage or rules that cannot be loaded, 3
# inconclusive.
set -euo pipefail

die() { echo "diff.sh: $*" >&2; exit 2; }

base='' old='' out=wallprobe-report rules=()
while (($# > 0)); do
	case $1 in
	--base | --old | --out)
		(($# > 1)) || die "$1 needs a value"
		declare "${1#--}=$2"
		shift 2
		;;
	--) shift; break ;;
	-*) die "unknown option $1; those of wallprobe lab diff go after --" ;;
	*) rules+=("$1"); shift ;;
	esac
done
((${#rules[@]} > 0)) || die "which rules files? Name them before --"
[[ -z $old || ${#rules[@]} == 1 ]] || die "--old goes with one rules file, not with ${#rules[@]}"
[[ -n $old || -n $base ]] || die "--base REF or --old FILE is needed: with what is it compared?"

here=$(cd "$(dirname "$0")" && pwd)
wallprobe=$(command -v wallprobe) || die "wallprobe is not in PATH: build it with make build, in the folder $(dirname "$(dirname "$here")")"
mkdir -p "$out"

# before is the whole tree of the merge base: rules may include other files.
before=
if [[ -z $old ]]; then
	top=$(git rev-parse --show-toplevel 2>/dev/null) || die "$PWD is in no git repository; compare with --old FILE"
	commit=$(git merge-base "$base" HEAD 2>/dev/null) ||
		die "git knows no commit that $base and this checkout have in common: fetch the whole history (fetch-depth: 0, GIT_DEPTH: 0)"
	before=$(mktemp -d)
	trap 'git -C "$top" worktree remove --force "$before" 2>/dev/null; rm -rf "$before"' EXIT
	git -C "$top" worktree add --quiet --detach "$before" "$commit"
fi

# was is where the old form of a rules file is; nothing where there is none.
was() {
	local file
	if [[ -n $old ]]; then
		file=$old
	else
		file=$before/$(realpath --relative-to="$top" "$1")
	fi
	[[ -e $file ]] && echo "$file"
}

status=0 changed=false broke=false
: >"$out/summary.md"
for file in "${rules[@]}"; do
	name=$out/$(tr / - <<<"${file#./}")
	if [[ ! -e $file ]]; then
		die "$file: no such rules file"
	elif ! earlier=$(was "$file"); then
		echo "$file is new: there is nothing to compare it with" | tee -a "$out/summary.md"
		continue
	fi
	one=0
	rm -f "$name".{txt,json,xml,md,html}
	"$here/../../scripts/lab-exec" "$wallprobe" lab diff --old "$earlier" --new "$file" \
		--json "$name.json" --junit "$name.xml" --markdown "$name.md" --html "$name.html" "$@" >"$name.txt" 2>&1 || one=$?
	# The old file is called as git calls it: 1a2b3c4d5e:firewall/edge.nft.
	for written in "$name".*; do
		[[ -z $before ]] || sed -i "s|$before/|${commit:0:10}:|g" "$written"
	done
	cat "$name.txt"
	{
		if [[ -s $name.md ]]; then
			cat "$name.md"
		else
			echo "## wallprobe: \`$file\` could not be compared"
			echo
			sed 's/^/    /' "$name.txt"
		fi
		echo
	} >>"$out/summary.md"
	if [[ -s $name.json ]]; then
		! grep -q '"kind": ' "$name.json" || changed=true
		! grep -A1 '"kind": "broke"' "$name.json" | grep -q '"required": true' || broke=true
	fi
	[[ -z ${GITHUB_ACTIONS:-} || $one == 0 ]] || echo "::error file=$file::what wallprobe lab diff says of this change is in the job's summary (exit status $one)"
	((one <= status)) || status=$one
done

[[ -z ${GITHUB_STEP_SUMMARY:-} ]] || cat "$out/summary.md" >>"$GITHUB_STEP_SUMMARY"
[[ -z ${GITHUB_OUTPUT:-} ]] || printf 'changed=%s\nbroke=%s\nreports=%s\n' "$changed" "$broke" "$out" >>"$GITHUB_OUTPUT"
exit "$status"
