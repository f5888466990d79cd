//! Transcripts of kubectl: what differs from run to run has one form.

/// Columns whose cells differ.
const COLUMNS: [&str; 4] = ["AGE", "SPENT", "BALANCE", "STEP"];
/// Fields of descriptions whose values differ.
const FIELDS: [&str; 11] = [
    "UID",
    "Resource Version",
    "Spent Credits",
    "Credited Credits",
    "Balance Credits",
    "Held Credits",
    "Step",
    "Attempts",
    "Digest",
    "Size Bytes",
    "Observed Generation",
];

/// A flag of a described command whose value, in the line behind it, differs: a job lasts as long as its machine needs.
const FLAG: &str = "--pause-ms";

/// One command and what it printed, in the form that is checked in.
pub(super) fn section(command: &[&str], output: &str) -> String {
    let word = |word: &&str| if word.contains('"') { format!("'{word}'") } else { (*word).to_owned() };
    let mut text = format!("$ kubectl {}\n", command.iter().map(word).collect::<Vec<_>>().join(" "));
    let mut lines = output.lines().peekable();
    let mut before = "";
    while let Some(line) = lines.next() {
        if is_header(line) {
            let mut table = vec![line];
            while let Some(row) = lines.next_if(|row| !row.trim().is_empty()) {
                table.push(row);
            }
            text.push_str(&aligned(&table));
        } else {
            let shown = if before.trim() == FLAG { line.replace(line.trim(), "*") } else { plain(line) };
            text.push_str(shown.trim_end());
            text.push('\n');
        }
        before = line;
    }
    text
}

fn is_header(line: &str) -> bool {
    let upper = |word: &str| word.len() > 1 && word.bytes().all(|letter| letter.is_ascii_uppercase());
    line.split_whitespace().count() > 1 && line.split_whitespace().all(upper)
}

/// A table with its differing cells masked, aligned anew.
fn aligned(table: &[&str]) -> String {
    let Some(header) = table.first() else { return String::new() };
    let begins = |at: &usize| *at == 0 || header.as_bytes().get(at - 1) == Some(&b' ');
    let starts: Vec<usize> =
        (0..header.len()).filter(|at| header.as_bytes().get(*at) != Some(&b' ') && begins(at)).collect();
    let cell = |row: &str, column: usize| -> String {
        let end = starts.get(column + 1).copied().unwrap_or(row.len()).min(row.len());
        let begin = starts.get(column).copied().unwrap_or(end).min(end);
        row.get(begin..end).unwrap_or_default().trim().to_owned()
    };
    let rows: Vec<Vec<String>> = table
        .iter()
        .enumerate()
        .map(|(place, row)| {
            let cells = (0..starts.len()).map(|column| {
                let known = cell(row, column);
                let masked = place > 0 && !known.is_empty() && COLUMNS.contains(&cell(header, column).as_str());
                if masked { "*".to_owned() } else { plain(&known) }
            });
            cells.collect()
        })
        .collect();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..starts.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("   ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A line with times, ids and differing fields masked.
fn plain(line: &str) -> String {
    if let Some((name, rest)) = line.split_once(": ")
        && FIELDS.contains(&name.trim())
    {
        let indent = rest.len() - rest.trim_start().len();
        return format!("{name}: {}*", &rest[..indent]);
    }
    let mut words = Vec::new();
    for word in line.split(' ') {
        words.push(masked(word));
    }
    words.join(" ")
}

fn masked(word: &str) -> String {
    let inner = word.trim_matches(|letter: char| matches!(letter, '"' | ',' | '(' | ')' | '\''));
    if is_time(inner) || is_uuid(inner) {
        return word.replace(inner, if is_time(inner) { "TIME" } else { "UID" });
    }
    if let Some((before, after)) = word.split_once("/jobs/") {
        let end = after.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-').unwrap_or(after.len());
        return format!("{before}/jobs/JOB{}", &after[end..]);
    }
    word.to_owned()
}

fn is_time(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.len() >= 20 && bytes.get(10) == Some(&b'T') && bytes.last() == Some(&b'Z') && word.matches(':').count() == 2
}

fn is_uuid(word: &str) -> bool {
    word.len() == 36
        && word.bytes().all(|letter| letter.is_ascii_hexdigit() || letter == b'-')
        && word.matches('-').count() == 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_keep_their_shares_and_lose_their_ages() {
        let told =
            "NAME      PHASE       REASON   SHARE   SPENT   AGE\ntrain-1   Succeeded            400m    5213    12m\n";
        let wanted = "$ kubectl get gj\nNAME      PHASE       REASON   SHARE   SPENT   AGE\ntrain-1   Succeeded            400m    *       *\n";
        assert_eq!(section(&["get", "gj"], told), wanted);
    }

    #[test]
    fn a_described_command_keeps_its_flags_and_loses_how_long_it_is() {
        let told = "  Command:\n    --steps\n    560\n    --pause-ms\n    80\n";
        let wanted = "$ kubectl describe gj\n  Command:\n    --steps\n    560\n    --pause-ms\n    *\n";
        assert_eq!(section(&["describe", "gj"], told), wanted);
    }

    #[test]
    fn descriptions_lose_times_ids_and_money() {
        for (line, wanted) in [
            ("  Spent Credits:      125", "  Spent Credits:      *"),
            ("    Last Transition Time:  2026-11-29T18:00:00Z", "    Last Transition Time:  TIME"),
            ("    Message: tenants/acme/projects/x/jobs/0199-ab.", "    Message: tenants/acme/projects/x/jobs/JOB."),
            ("  Share:  400m", "  Share:  400m"),
        ] {
            assert_eq!(plain(line), wanted);
        }
    }
}
