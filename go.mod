module libreceivewal

go 1.26.0

require (
	github.com/jackc/pgx/v5 v5.12.0
	github.com/pierrec/lz4/v4 v4.1.33
	golang.org/x/sys v0.49.0
)
