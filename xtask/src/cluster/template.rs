//! Texts with places to fill in: `@NAME@`.

/// Replaces every place by its value; a place that is left over is a mistake of ours and shows in the text.
pub fn fill(text: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("@{name}@"), value))
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn places_are_filled_wherever_they_stand() {
        assert_eq!(fill("a @X@-@Y@ @X@", &[("X", "1"), ("Y", "2")]), "a 1-2 1");
    }
}
