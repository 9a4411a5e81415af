//! A table for the terminal: numbers to the right, pairs aligned at their bar, columns dropped from the right when the
//! terminal is too narrow. Nothing but spaces between columns, so that `awk` and eyes both read it.

use std::iter;

use anstyle::Style;

/// Between two columns.
const GAP: usize = 2;

/// Where the text of a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// One cell: a text, or two with a bar between them.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    second: Option<String>,
    style: Style,
}

impl Cell {
    /// A text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// Old against new.
    pub fn pair(old: impl Into<String>, new: impl Into<String>) -> Self {
        Self { text: old.into(), second: Some(new.into()), style: Style::new() }
    }

    /// In colour; the text must say the same without it.
    #[must_use]
    pub fn styled(self, style: Style) -> Self {
        Self { style, ..self }
    }
}

/// A table under construction.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(Cell, Align)>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with these columns; a title with ` | ` is the title of pairs.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let title = |title: &str| match title.split_once(" | ") {
            Some((old, new)) => Cell::pair(old, new),
            None => Cell::new(title),
        };
        Self { columns: columns.iter().map(|(text, align)| (title(text), *align)).collect(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    /// The lines, each with its line feed.
    pub fn render(&self, width: usize) -> String {
        let widths: Vec<Width> = (0..self.columns.len()).map(|index| self.width_of(index)).collect();
        let shown = fitting(&widths, width);
        let titles: Vec<Cell> = self.columns.iter().map(|(title, _)| title.clone()).collect();
        let mut out = String::new();
        for (index, row) in iter::once(&titles).chain(&self.rows).enumerate() {
            let mut line = String::new();
            let mut plain = 0;
            for ((cell, (_, align)), width) in row.iter().zip(&self.columns).zip(&widths).take(shown) {
                // Spaces before a cell are written only when the cell follows: no line ends with spaces.
                let (before, text) = cell.laid_out(*align, *width, index == 0);
                if text.is_empty() {
                    plain += before + GAP;
                    continue;
                }
                line.extend(iter::repeat_n(' ', plain + before));
                line.push_str(&cell.style.render().to_string());
                line.push_str(&text);
                line.push_str(&cell.style.render_reset().to_string());
                plain = GAP + width.total().saturating_sub(before + length(&text));
            }
            out.push_str(&line);
            out.push('\n');
        }
        out
    }

    fn width_of(&self, index: usize) -> Width {
        let title = self.columns.get(index).map(|(title, _)| title);
        let cells = title.into_iter().chain(self.rows.iter().filter_map(|row| row.get(index)));
        cells.fold(Width::default(), |width, cell| match &cell.second {
            None => Width { alone: width.alone.max(length(&cell.text)), ..width },
            Some(second) => {
                let (first, second) = (width.first.max(length(&cell.text)), width.second.max(length(second)));
                Width { first, second, ..width }
            }
        })
    }
}

/// The widths that a column needs for its texts and for both halves of its pairs.
#[derive(Clone, Copy, Debug, Default)]
struct Width {
    alone: usize,
    first: usize,
    second: usize,
}

impl Width {
    fn total(self) -> usize {
        let pair = if self.first + self.second == 0 { 0 } else { self.first + 3 + self.second };
        pair.max(self.alone)
    }
}

impl Cell {
    /// Spaces before the text, and the text. The words of a title stay together at their bar.
    fn laid_out(&self, align: Align, width: Width, is_title: bool) -> (usize, String) {
        match (&self.second, align) {
            (Some(second), _) => {
                let before = width.first.saturating_sub(length(&self.text));
                let half = if is_title { 0 } else { width.second };
                (before, format!("{} | {second:>half$}", self.text))
            }
            (None, Align::Left) => (0, self.text.clone()),
            (None, Align::Right) => (width.total().saturating_sub(length(&self.text)), self.text.clone()),
        }
    }
}

/// How many columns fit; the first one always stays.
fn fitting(widths: &[Width], limit: usize) -> usize {
    let mut total = 0;
    for (index, width) in widths.iter().enumerate() {
        total += width.total() + if index == 0 { 0 } else { GAP };
        if index > 0 && total > limit {
            return index;
        }
    }
    widths.len()
}

fn length(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table =
            Table::new(&[("SERVICE", Align::Left), ("RATE", Align::Right), ("ERRORS old | new", Align::Left)]);
        table.push(vec![Cell::new("api-name02"), Cell::new("310/s"), Cell::pair("0.02 %", "38.1 %")]);
        table.push(vec![Cell::new("api"), Cell::new("1 240/s"), Cell::pair("-", "0.01 %")]);
        table
    }

    #[test]
    fn numbers_stand_right_and_pairs_meet_at_their_bar() {
        let expected = "\
SERVICE        RATE  ERRORS old | new
api-name02    310/s      0.02 % | 38.1 %
api         1 240/s           - | 0.01 %
";
        assert_eq!(sample().render(100), expected);
    }

    #[test]
    fn columns_go_from_the_right_and_the_first_one_stays() {
        assert_eq!(sample().render(30).lines().next(), Some("SERVICE        RATE"));
        assert_eq!(sample().render(5).lines().nth(1), Some("api-name02"));
    }

    #[test]
    fn colour_changes_no_width() {
        let mut table = sample();
        table.rows[0][1] = Cell::new("310/s").styled(crate::cli::output::ALARM);

        let coloured = table.render(100);

        assert!(coloured.contains("\u{1b}["));
        assert_eq!(anstream::adapter::strip_str(&coloured).to_string(), sample().render(100));
    }

    #[test]
    fn no_line_ends_with_spaces() {
        let mut table = Table::new(&[("A", Align::Left), ("B", Align::Left)]);
        table.push(vec![Cell::new("long text"), Cell::new("")]);
        assert_eq!(table.render(80), "A          B\nlong text\n");
    }
}
