package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// addCompletion adds cobra's completion command. Its script for bash calls a
// function of the package bash-completion, and would fail at every Tab where that
// is not installed; bashWords lets it work without.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	completion, _, _ := root.Find([]string{"completion"})
	completion.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() } // called only without arguments
	bash, _, _ := root.Find([]string{"completion", "bash"})
	bash.Long = `Print the script that completes commands, flags and the names of blocks in bash.

In this shell:

	source <(shm completion bash)

In every new shell, if the package bash-completion is installed:

	shm completion bash >~/.local/share/bash-completion/completions/shm

or without that package:

	shm completion bash >>~/.bashrc`
	script := bash.RunE
	bash.RunE = func(cmd *cobra.Command, args []string) error {
		err := script(cmd, args)
		if err == nil {
			_, err = fmt.Fprint(cmd.OutOrStdout(), bashWords)
		}
		return aboutFile(err)
	}
}

// bashWords replaces a function of the script. Without bash-completion it uses the
// words into which bash has split the line. Bash also splits at characters other
// than spaces, but none of these can be in the name of a block.
const bashWords = `
__shm_init_completion()
{
    COMPREPLY=()
    if declare -F _get_comp_words_by_ref >/dev/null 2>&1; then
        _get_comp_words_by_ref "$@" cur prev words cword
    else
        words=("${COMP_WORDS[@]}")
        cword=$COMP_CWORD
        cur=${words[cword]}
        prev=${words[cword-1]}
    fi
}
`
