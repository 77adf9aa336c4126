package pg

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Standby makes a streaming standby of a running cluster and starts it. name becomes its application_name; conf is added to
// the primary's configuration. It works on a standby too.
//
// The base is a copy of the files in backup mode: see backupTo.
func (c *Cluster) Standby(name string, conf ...string) *Cluster {
	c.t.Helper()
	s := prepare(c.t, c.Version, c.SegmentSize, c.tcp)
	if c.RootCert != "" {
		s.RootCert = filepath.Join(s.DataDir, "server.crt")
	}
	c.backupTo(s)
	s.create("standby.signal", "")
	s.appendFile("postgresql.conf", append([]string{
		"primary_conninfo = '" + c.ConnString("application_name="+name) + "'",
		"hot_standby = on",
	}, conf...))
	s.Start()
	c.WaitStreaming(name)
	s.WaitReplayed(c.CurrentLSN()) // all may still have been in the socket
	return s
}

// backupTo copies the data directory to that of a new cluster in backup mode: the BASE_BACKUP command differs between versions, this
// does not.
func (c *Cluster) backupTo(s *Cluster) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	conn, err := pgconn.Connect(ctx, c.ConnString()) // backup mode lasts as long as its connection
	c.must(err)
	defer conn.Close(ctx)
	begin, end := "select pg_backup_start('standby', true)", "select labelfile from pg_backup_stop(false)"
	if c.Version < 15 {
		begin, end = "select pg_start_backup('standby', true, false)", "select labelfile from pg_stop_backup(false, false)"
	}
	_, err = query(ctx, conn, begin)
	c.must(err)
	c.must(s.copyData(c.DataDir))
	label, err := query(ctx, conn, end)
	c.must(err)

	s.create("backup_label", label)
}

// Promote ends recovery and waits until the server writes WAL on its new timeline.
func (c *Cluster) Promote() {
	c.t.Helper()
	if c.SQL("select pg_promote(true, 120)") != "t" {
		c.t.Fatal("the standby was not promoted")
	}
	c.WaitFor("the end of recovery", func() bool { return !c.InRecovery() })
}

// WaitReplayed waits until a standby has replayed lsn.
func (c *Cluster) WaitReplayed(lsn LSN) {
	c.t.Helper()
	c.WaitFor("the standby to replay "+lsn.String(), func() bool { return c.LSN("select pg_last_wal_replay_lsn()") >= lsn })
}

// CopyWAL gives the server those segments and history files of another one that it lacks, as if it had restored them from an
// archive. Files for segments to come, in which there is old WAL still, are left out.
func (c *Cluster) CopyWAL(from *Cluster) {
	c.t.Helper()
	files := List(c.t, from.WALDir())
	for _, name := range append(files.Complete, files.History...) {
		to := filepath.Join(c.WALDir(), name)
		if _, err := os.Stat(to); err == nil {
			continue
		}
		if len(name) == 24 && !from.begun(name) {
			continue
		}
		c.must(copyFile(filepath.Join(from.WALDir(), name), to, 0o600))
		c.must(own(to))
	}
}

// begun tells whether the server has written to a segment: its first page then has the segment's own address (xlp_pageaddr in
// access/xlog_internal.h).
func (c *Cluster) begun(name string) bool {
	c.t.Helper()
	f, err := os.Open(filepath.Join(c.WALDir(), name))
	c.must(err)
	defer f.Close()
	var head [16]byte
	_, err = io.ReadFull(f, head[:])
	c.must(err)
	return binary.LittleEndian.Uint64(head[8:]) == c.segmentNumber(name)*c.SegmentSize
}

// copyData copies the data directory of a server in backup mode: without what belongs to the running server or is
// made anew at a start (excludeDirContents and excludeFiles in basebackup.c).
func (c *Cluster) copyData(from string) error {
	empty := map[string]bool{"pg_wal": true, "pg_replslot": true, "pg_dynshmem": true, "pg_notify": true, "pg_serial": true,
		"pg_snapshots": true, "pg_stat_tmp": true, "pg_subtrans": true}
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return ignoreMissing(err)
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if top, _, inside := strings.Cut(name, "/"); inside && empty[top] {
			if d.IsDir() && top == "pg_replslot" { // a slot; the folders in pg_wal are wanted
				return fs.SkipDir
			}
			if !d.IsDir() {
				return nil
			}
		}
		if name == "postmaster.pid" || name == "postmaster.opts" || name == "standby.signal" || strings.HasPrefix(d.Name(), "pgsql_tmp") {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return ignoreMissing(err)
		}
		to := filepath.Join(c.DataDir, name)
		if d.IsDir() {
			err = os.Mkdir(to, info.Mode().Perm())
		} else {
			err = copyFile(path, to, info.Mode().Perm())
		}
		if err == nil {
			err = own(to)
		}
		return ignoreMissing(err)
	})
}

// ignoreMissing forgives a file that the running server has removed meanwhile.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// create makes a file in the data directory, as the server's own.
func (c *Cluster) create(name, text string) {
	c.t.Helper()
	path := filepath.Join(c.DataDir, name)
	c.must(os.WriteFile(path, []byte(text), 0o600))
	c.must(own(path))
}

// own gives a file to the user who runs servers.
func own(path string) error {
	cred, err := credential()
	if err != nil || cred == nil {
		return err
	}
	return os.Lchown(path, int(cred.Uid), int(cred.Gid))
}
