package main

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"github.com/shmkit/shm"
)

func lsCommand() *cobra.Command {
	var all, asJSON, quiet bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List blocks",
		Long: `Ls lists the blocks there are, by name. SIZE is what a block holds and CAP what
it can hold. REFS counts the attachments, those of killed processes included
until the block ends. STATE is one of

  attached  somebody is attached to the block
  kept      nobody is, and the block is persistent: it stays until "shm rm"
  stale     not persistent, no process attached: the next "shm reap" removes it
  raw       a block without header, of which nobody keeps count (with --all)

Blocks that you may not read are left out.`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := blocks(all)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case asJSON:
				return printJSON(out, listOf(list))
			case quiet:
				return printNames(out, list)
			}
			return printBlocks(out, list, time.Now())
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "list the blocks of other programs, which have no header, as well")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array; sizes are in bytes")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	cmd.MarkFlagsMutuallyExclusive("json", "quiet")
	return cmd
}

// blocks returns the blocks sorted by name, those without header only if raw.
func blocks(raw bool) ([]shm.Info, error) {
	list, err := shm.List()
	if !raw {
		list = slices.DeleteFunc(list, func(i shm.Info) bool { return i.Headerless })
	}
	slices.SortFunc(list, func(a, b shm.Info) int { return cmp.Compare(a.Name, b.Name) })
	return list, err
}

func printBlocks(w io.Writer, list []shm.Info, now time.Time) error {
	if len(list) == 0 {
		return nil
	}
	t := newTable()
	t.AppendHeader(table.Row{"NAME", "SIZE", "CAP", "REFS", "STATE", "MODE", "CREATED"})
	alignRight(t, 2, 3, 4)
	for _, i := range list {
		refs, created := "-", "-"
		if !i.Headerless {
			refs = fmt.Sprint(i.Refs)
			created = humanize.RelTime(i.Created, now, "ago", "from now")
		}
		t.AppendRow(table.Row{i.Name, iec(i.Size), iec(i.Cap), refs, state(i), i.Mode.String(), created})
	}
	return printTable(w, t)
}

func printNames(w io.Writer, list []shm.Info) error {
	for _, i := range list {
		if _, err := fmt.Fprintln(w, i.Name); err != nil {
			return fileError{err}
		}
	}
	return nil
}

// state says in one word who keeps the block, as the JSON form of i does.
func state(i shm.Info) string {
	switch {
	case i.Headerless:
		return "raw"
	case i.Attached:
		return "attached"
	case i.Persistent:
		return "kept"
	}
	return "stale"
}

func statCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "stat NAME",
		Short:             "Show all that is known of a block",
		ValidArgsFunction: completeNames(1, everyBlock),
		RunE: func(cmd *cobra.Command, args []string) error {
			info, err := shm.Stat(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), info)
			}
			return printBlock(cmd.OutOrStdout(), *info)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object; sizes are in bytes")
	return cmd
}

func printBlock(w io.Writer, i shm.Info) error {
	t := newTable()
	row := func(key string, value string) { t.AppendRow(table.Row{key, value}) }
	bytes := func(n int64) string {
		if n < 1<<10 {
			return plural(int(n), "byte")
		}
		return fmt.Sprintf("%s (%s bytes)", iec(n), humanize.Comma(n))
	}
	kind := []string{"raw"}
	if !i.Headerless {
		kind = []string{"counted"}
		if i.Persistent {
			kind = append(kind, "persistent")
		}
		if i.Sparse {
			kind = append(kind, "sparse")
		}
	}
	row("name", i.Name)
	row("size", bytes(i.Size))
	row("cap", bytes(i.Cap))
	row("state", state(i))
	if !i.Headerless {
		row("refs", fmt.Sprint(i.Refs))
	}
	row("kind", strings.Join(kind, ", "))
	row("mode", fmt.Sprintf("%v (%#o)", i.Mode, i.Mode.Perm()))
	if !i.Headerless {
		row("created", fmt.Sprintf("%s by process %d", i.Created.Local().Format(time.DateTime), i.Creator))
		row("id", hex.EncodeToString(i.ID[:]))
	}
	return printTable(w, t)
}

func rmCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rm NAME...",
		Short: "Take the names of blocks away",
		Long: `Rm takes the names of blocks away at once, so that nobody can attach any more.
Processes that are attached keep the memory until they detach.`,
		Example: `  shm rm frames
  shm rm -f -- $(shm ls -q)`,
		Args: func(cmd *cobra.Command, args []string) error {
			if force && len(args) == 0 { // as POSIX has it for rm
				return nil
			}
			return operands(cmd, args)
		},
		ValidArgsFunction: completeNames(-1, everyBlock),
		RunE: func(cmd *cobra.Command, args []string) error {
			var failed error
			for _, name := range args {
				err := shm.Unlink(name)
				if err != nil && (!force || !errors.Is(err, fs.ErrNotExist)) {
					fmt.Fprintln(cmd.ErrOrStderr(), "shm:", message(err))
					failed = exitStatus(1)
				}
			}
			return failed
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not mind blocks that do not exist, nor if no NAME is given")
	return cmd
}

func reapCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "reap",
		Short: "Remove what killed processes left behind",
		Long: `Reap removes all blocks that nobody is attached to and that are not persistent,
as far as you may, and prints their names. It never touches the blocks of other
programs, which have no header.`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := shm.Reap()
			if printErr := printReaped(cmd.OutOrStdout(), names, asJSON); err == nil {
				err = printErr
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array of names")
	return cmd
}

func printReaped(w io.Writer, names []string, asJSON bool) error {
	slices.Sort(names)
	if asJSON {
		return printJSON(w, listOf(names))
	}
	for _, name := range names {
		if _, err := fmt.Fprintln(w, name); err != nil {
			return fileError{err}
		}
	}
	return nil
}

// Filters for completeNames.
func everyBlock(shm.Info) bool { return true }
func managed(i shm.Info) bool  { return !i.Headerless }

// completeNames completes up to most names of blocks that pass the filter, any
// number if most is negative.
func completeNames(most int, filter func(shm.Info) bool) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		const directive = cobra.ShellCompDirectiveNoFileComp
		if most >= 0 && len(args) >= most {
			return nil, directive
		}
		list, _ := blocks(true)
		var names []cobra.Completion
		for _, i := range list {
			if filter(i) && !slices.Contains(args, i.Name) {
				names = append(names, cobra.CompletionWithDesc(i.Name, iec(i.Size)+", "+state(i)))
			}
		}
		return names, directive
	}
}

// listOf returns list, which is not null in JSON even if it is empty.
func listOf[T any](list []T) []T { return append([]T{}, list...) }

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fileError{err}
	}
	return nil
}

// newTable returns a table of nothing but columns, as docker ps and kubectl get
// print it, which awk can take apart.
func newTable() table.Writer {
	t := table.NewWriter()
	style := table.StyleDefault
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Options = table.OptionsNoBordersAndSeparators
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	return t
}

func alignRight(t table.Writer, columns ...int) {
	var configs []table.ColumnConfig
	for _, n := range columns {
		configs = append(configs, table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(configs)
}

func printTable(w io.Writer, t table.Writer) error {
	if _, err := fmt.Fprintln(w, t.Render()); err != nil {
		return fileError{err}
	}
	return nil
}
