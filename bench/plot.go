package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Measures of a plot, in pixels.
const (
	plotLabels = 210 // room for the receivers' names
	plotWidth  = 300 // of a panel's bars
	plotGap    = 70  // between panels
	plotBar    = 18
	plotTop    = 58
	plotTitle  = 26 // of a case
)

// plot draws an SVG: a row of panels for each case, a panel for each column that is to be drawn, a bar for each receiver's median
// and a dot for each round.
func (r *report) plot() string {
	var columns []column
	for _, c := range r.Columns {
		if c.Plot {
			columns = append(columns, c)
		}
	}
	var body strings.Builder
	y := plotTop
	for _, in := range r.cases() {
		receivers := r.receivers(in)
		fmt.Fprintf(&body, "<text x='12' y='%d' class='b'>%s</text>\n", y+14, escape(in))
		for i, c := range columns {
			r.panel(&body, in, receivers, c, plotLabels+i*(plotWidth+plotGap), y+plotTitle)
		}
		for i, name := range receivers {
			fmt.Fprintf(&body, "<text x='%d' y='%d' class='e'>%s</text>\n", plotLabels-8, y+plotTitle+i*plotBar+13, escape(name))
		}
		y += plotTitle + len(receivers)*plotBar + 24
	}
	width := plotLabels + len(columns)*(plotWidth+plotGap)
	var svg strings.Builder
	fmt.Fprintf(&svg, "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' viewBox='0 0 %d %d' font-family='sans-serif' font-size='12'>\n",
		width, y, width, y)
	svg.WriteString("<style>.b{font-weight:bold}.e{text-anchor:end}.s{font-size:10px;fill:#555}</style>\n")
	fmt.Fprintf(&svg, "<rect width='%d' height='%d' fill='#fff'/>\n", width, y)
	fmt.Fprintf(&svg, "<text x='12' y='22' font-size='15' class='b'>%s</text>\n", escape(r.Title))
	fmt.Fprintf(&svg, "<text x='12' y='40' class='s'>%s; bars: medians of %d rounds, dots: rounds</text>\n", escape(r.Machine), r.Rounds)
	svg.WriteString(body.String())
	svg.WriteString("</svg>\n")
	return svg.String()
}

func (r *report) panel(to *strings.Builder, in string, receivers []string, c column, x, y int) {
	largest := 0.0
	for _, name := range receivers {
		for _, v := range r.values(name, in, c.Name) {
			largest = max(largest, v)
		}
	}
	if largest == 0 {
		return
	}
	step := tick(largest)
	scale := float64(plotWidth) / largest
	bottom := y + len(receivers)*plotBar
	fmt.Fprintf(to, "<text x='%d' y='%d'>%s</text>\n", x, y-8, escape(strings.TrimSuffix(c.Name+", "+c.Unit, ", ")))
	for v := 0.0; v <= largest; v += step {
		at := float64(x) + v*scale
		fmt.Fprintf(to, "<line x1='%.1f' y1='%d' x2='%.1f' y2='%d' stroke='#ddd'/><text x='%.1f' y='%d' class='s' text-anchor='middle'>%s</text>\n",
			at, y, at, bottom, at, bottom+12, escape(trimmed(v)))
	}
	for i, name := range receivers {
		byRound := r.values(name, in, c.Name)
		all := numbers(byRound)
		if len(all) == 0 {
			continue
		}
		top := y + i*plotBar
		color := "#9aa7b0"
		switch {
		case strings.HasPrefix(name, ours):
			color = "#2b7bba"
		case strings.HasPrefix(name, pgReceivewal):
			color = "#d2803a"
		case strings.HasPrefix(name, "limit"):
			color = "#c9d3d9"
		}
		m := median(all)
		fmt.Fprintf(to, "<rect x='%d' y='%d' width='%.1f' height='%d' fill='%s'/>\n", x, top+3, m*scale, plotBar-6, color)
		for _, v := range slices.Sorted(slices.Values(all)) {
			fmt.Fprintf(to, "<circle cx='%.1f' cy='%d' r='1.8' fill='#222'/>\n", float64(x)+v*scale, top+plotBar/2)
		}
		fmt.Fprintf(to, "<text x='%.1f' y='%d' class='s'>%.*f</text>\n", float64(x)+slices.Max(all)*scale+5, top+13, c.Digits, m)
	}
}

// tick is a round number of which about four make up the largest value.
func tick(largest float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(largest/4)))
	for _, n := range []float64{1, 2, 5, 10} {
		if n*power*5 >= largest {
			return n * power
		}
	}
	return 10 * power
}

func trimmed(v float64) string {
	return fmt.Sprintf("%.4g", v)
}

func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "'", "&apos;").Replace(s)
}
