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
	"github.com/dustin/go-humanize/english"
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
		Long: `Ls lists blocks by name. SIZE is what a block holds and CAP what it can hold.
REFS is the number of attachments; "shm who" names them. STATE is one of

  attached  a process is attached to the block
  kept      no process is, and the block stays until "shm rm"
  stale     no process is, and the next "shm reap" removes the block
  raw       a block without a header, which counts no attachments (with --all)

Blocks that you may not read are not listed.`,
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
				var names []string
				for _, i := range list {
					names = append(names, i.Name)
				}
				return printNames(out, names)
			}
			return printBlocks(out, list, time.Now())
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also list the blocks of other programs, which have no header")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON array; sizes are in bytes")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print only the names")
	cmd.MarkFlagsMutuallyExclusive("json", "quiet")
	return cmd
}

// blocks returns the blocks sorted by name, those without a header only if raw.
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
	t := newTable(2, 3, 4)
	t.AppendHeader(table.Row{"NAME", "SIZE", "CAP", "REFS", "STATE", "MODE", "CREATED"})
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

// state returns the "state" of the JSON form of i.
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
		Use:   "stat NAME",
		Short: "Show the details of a block",
		Long: `Stat shows what a block is. Its state is one of those of "shm ls", followed by

  kept      if it will stay until "shm rm" when no process is attached any more
  finished  if its writer has declared it to be complete, as "shm put" does`,
		ValidArgsFunction: completeNames(1, true),
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
	row := func(key, value string) { t.AppendRow(table.Row{key, value}) }
	bytes := func(n int64) string {
		if n < 1<<10 {
			return english.Plural(int(n), "byte", "")
		}
		return fmt.Sprintf("%s (%s bytes)", iec(n), humanize.Comma(n))
	}
	kind := "raw"
	if !i.Headerless {
		kind = "counted"
	}
	if i.Sparse {
		kind += ", sparse"
	}
	row("name", i.Name)
	row("size", bytes(i.Size))
	row("cap", bytes(i.Cap))
	states := state(i)
	if i.Persistent && i.Attached {
		states += ", kept"
	}
	if i.Finished {
		states += ", finished"
	}
	row("state", states)
	if !i.Headerless {
		row("refs", fmt.Sprint(i.Refs))
	}
	for _, h := range i.Holders {
		row("held by", holderOf(h).String())
	}
	row("kind", kind)
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
		Short: "Unlink blocks",
		Long: `Rm removes the names of blocks immediately, so that no process can attach to
them any more. Processes that are attached keep the memory until they detach.`,
		Example: `  shm rm frames
  shm rm -f -- $(shm ls -q)`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: completeNames(-1, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && !force { // rm -f allows it, as rm(1) does
				return usageError{errors.New("no NAME given")}
			}
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
	cmd.Flags().BoolVarP(&force, "force", "f", false, "ignore blocks that do not exist, and allow no NAME")
	return cmd
}

func reapCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "reap",
		Short: "Remove stale blocks",
		Long: `Reap removes the stale blocks that you may remove, and prints their names. A
stale block is not kept and no process is attached to it. Reap never removes
blocks of other programs, which have no header.`,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := shm.Reap()
			return cmp.Or(err, printReaped(cmd.OutOrStdout(), names, asJSON))
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
	return printNames(w, names)
}

// completeNames completes up to most names of blocks, any number if most is
// negative, with the names of those without a header only if raw.
func completeNames(most int, raw bool) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
		list, _ := blocks(raw)
		for _, i := range list {
			if (most < 0 || len(args) < most) && !slices.Contains(args, i.Name) {
				names = append(names, cobra.CompletionWithDesc(i.Name, iec(i.Size)+", "+state(i)))
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// listOf returns list, or an empty list for nil, which in JSON would be null.
func listOf[T any](list []T) []T { return append([]T{}, list...) }

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return aboutFile(enc.Encode(v))
}

// printNames prints one name a line.
func printNames(w io.Writer, names []string) error {
	_, err := io.WriteString(w, strings.Join(append(names, ""), "\n"))
	return aboutFile(err)
}

// newTable returns a table without lines, as docker ps and kubectl get print it,
// which awk can split. The columns in right, counted from 1, are aligned right.
func newTable(right ...int) table.Writer {
	t := table.NewWriter()
	style := table.StyleDefault
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Options = table.OptionsNoBordersAndSeparators
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	var columns []table.ColumnConfig
	for _, n := range right {
		columns = append(columns, table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight})
	}
	t.SetColumnConfigs(columns)
	return t
}

func printTable(w io.Writer, t table.Writer) error {
	_, err := fmt.Fprintln(w, t.Render())
	return aboutFile(err)
}
