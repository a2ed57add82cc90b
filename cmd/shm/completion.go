package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// addCompletion adds the completion command of cobra. Its script for bash calls
// a function of the package bash-completion, and fails at every Tab where that is
// not installed, so it is told what to do then.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	completion, _, _ := root.Find([]string{"completion"})
	completion.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() } // runs only without arguments
	bash, _, _ := root.Find([]string{"completion", "bash"})
	bash.Long = `Print the script that completes commands, flags and the names of blocks in bash.

In this shell:

	source <(shm completion bash)

In every new one, if the package bash-completion is installed:

	shm completion bash >~/.local/share/bash-completion/completions/shm

and without that package:

	shm completion bash >>~/.bashrc`
	script := bash.RunE
	bash.RunE = func(cmd *cobra.Command, args []string) error {
		if err := script(cmd, args); err != nil {
			return fileError{err}
		}
		if _, err := fmt.Fprint(cmd.OutOrStdout(), bashWords); err != nil {
			return fileError{err}
		}
		return nil
	}
}

// bashWords replaces a function of the script. Without bash-completion the words
// are those that bash has made of the line, which it breaks at more characters
// than spaces; no name of a block has any of these.
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
