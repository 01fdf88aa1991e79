//! Adds a member to a Cargo workspace by an edit of its text, so that everything else in the file stays.

use toml::de::{DeTable, DeValue};

/// The text with `name` among `workspace.members`; none when it is covered already or there is no such list.
pub fn with_member(text: &str, name: &str) -> Result<Option<String>, toml::de::Error> {
    let root = DeTable::parse(text)?;
    let list = root.get_ref().get("workspace").and_then(|workspace| workspace.get_ref().get("members"));
    let Some((list, DeValue::Array(members))) = list.map(|list| (list.span(), list.get_ref())) else {
        return Ok(None);
    };
    if members.iter().filter_map(|member| member.get_ref().as_str()).any(|pattern| covers(pattern, name)) {
        return Ok(None);
    }
    let (at, added) = match members.iter().last() {
        None => (list.start.saturating_add(1), format!("\"{name}\"")),
        Some(last) => {
            let span = last.span();
            (span.end, format!(",{}\"{name}\"", gap_before(text, span.start)))
        }
    };
    let (Some(before), Some(after)) = (text.get(..at), text.get(at..)) else { return Ok(None) };
    Ok(Some(format!("{before}{added}{after}")))
}

/// A blank, or the line break and indentation of a member that has a line of its own.
fn gap_before(text: &str, start: usize) -> &str {
    let before = text.get(..start).unwrap_or_default();
    let line = before.rfind('\n').and_then(|at| before.get(at..));
    line.filter(|gap| gap.trim().is_empty()).unwrap_or(" ")
}

/// Whether a member pattern names the folder; of wildcards, one `*` is understood.
fn covers(pattern: &str, name: &str) -> bool {
    let pattern = pattern.trim_start_matches("./").trim_end_matches('/');
    match pattern.split_once('*') {
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(members: &str, expected: Option<&str>) -> anyhow::Result<()> {
        let file = |members: &str| format!("# kept\n[workspace]\nmembers = {members}\nresolver = \"3\"\n");
        assert_eq!(with_member(&file(members), "orders")?, expected.map(file), "for {members}");
        Ok(())
    }

    #[test]
    fn a_member_is_added_and_the_rest_stays() -> anyhow::Result<()> {
        check("[]", Some("[\"orders\"]"))?;
        check("[\"sdk\", \"fixtures/*\"]", Some("[\"sdk\", \"fixtures/*\", \"orders\"]"))?;
        check(
            "[\n    \"sdk\",\n    \"a\", # why\n]",
            Some("[\n    \"sdk\",\n    \"a\",\n    \"orders\", # why\n]"),
        )?;
        check("[\n  \"sdk\"\n]", Some("[\n  \"sdk\",\n  \"orders\"\n]"))
    }

    #[test]
    fn a_member_that_is_covered_is_not_added() -> anyhow::Result<()> {
        for members in ["[\"orders\"]", "[\"*\"]", "[\"./orders/\"]", "[\"ord*\"]"] {
            check(members, None)?;
        }
        Ok(())
    }

    #[test]
    fn a_file_without_a_list_is_left_alone() -> anyhow::Result<()> {
        assert_eq!(with_member("[package]\nname = 'a'\n", "orders")?, None);
        assert_eq!(with_member("[workspace]\n", "orders")?, None);
        assert!(with_member("[workspace", "orders").is_err());
        Ok(())
    }
}
