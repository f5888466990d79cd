//! Tables: columns separated by spaces, no frames, so that they can be read, cut and searched.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use super::{Style, printable};

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    title: &'static str,
    wide: bool,
    right: bool,
}

impl Column {
    /// Always shown.
    pub(crate) const fn new(title: &'static str) -> Self {
        Self { title, wide: false, right: false }
    }

    /// Shown with `-o wide` only.
    pub(crate) const fn wide(title: &'static str) -> Self {
        Self { title, wide: true, right: false }
    }

    /// Set to the right, for numbers.
    pub(crate) const fn right(self) -> Self {
        Self { right: true, ..self }
    }
}

/// What can be printed in every form.
pub(crate) trait View: Serialize {
    /// The kind in JSON and YAML.
    const KIND: &'static str;
    /// How several are called.
    const PLURAL: &'static str;
    /// The columns, as many as [`View::cells`] gives.
    const COLUMNS: &'static [Column];

    /// The resource name, or what comes nearest.
    fn name(&self) -> String;

    /// One row.
    fn cells(&self, now: jiff::Timestamp) -> Vec<String>;
}

/// Which columns are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    Normal,
    Wide,
}

/// The rows of some views below their titles.
pub(crate) fn table<V: View>(items: &[V], width: Width, style: Style, now: jiff::Timestamp) -> String {
    let rows = items.iter().map(|item| item.cells(now)).collect();
    grid(V::COLUMNS, rows, width, style)
}

/// Rows of text below their titles; empty where there are none.
pub(crate) fn grid(columns: &[Column], rows: Vec<Vec<String>>, width: Width, style: Style) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let shown: Vec<usize> = (0..columns.len()).filter(|&at| width == Width::Wide || !columns[at].wide).collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(shown.iter().map(|&at| columns[at].title));
    for row in rows {
        let cell = |at: usize| match row.get(at).map(|text| printable(text)) {
            Some(text) if !text.is_empty() => text,
            _ => "-".to_owned(),
        };
        table.add_row(shown.iter().map(|&at| cell(at)));
    }
    for (place, &at) in shown.iter().enumerate() {
        if let Some(column) = table.column_mut(place) {
            column.set_padding((0, 2));
            if columns[at].right {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let text: Vec<String> = table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    colour_states(&text, style)
}

/// Colours the words below the title STATE, where all lines have the widths of the first.
fn colour_states(lines: &[String], style: Style) -> String {
    let place = lines.first().and_then(|line| line.find("STATE")).filter(|_| style.is_coloured());
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        let cut = place.filter(|&at| number > 0 && line.is_char_boundary(at) && line.len() > at);
        match cut {
            Some(at) => {
                let (before, rest) = line.split_at(at);
                let end = rest.find(' ').unwrap_or(rest.len());
                text.push_str(&format!("{before}{}{}", style.state(&rest[..end]), &rest[end..]));
            }
            None if number == 0 => text.push_str(&style.dim(line)),
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}
