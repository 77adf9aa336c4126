module libreceivewal

go 1.26
