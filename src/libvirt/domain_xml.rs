//! Domain XML that is changed in places and otherwise left as it is, byte by byte.
//!
//! A library reads the XML into a tree, with bounds. There is no document type, so no entities of
//! its own, and none of the shapes that make reading slow. Changes are gathered by element and then
//! written into the text. Comments, white space, quotes and other people's parts stay.

use std::collections::BTreeMap;
use std::ops::Range;

use roxmltree::{Document, Node, NodeId, ParsingOptions};

use super::element::{Element, escaped};

/// The largest domain XML, bytes: what libvirt lets through (`REMOTE_STRING_MAX`).
pub const BYTES_MAX: usize = 4 << 20;
/// Most namespace declarations, and most attributes of an element. The time to read them grows with
/// their square, and no domain has a tenth as many.
const NAMESPACES_MAX: usize = 256;
const ATTRIBUTES_MAX: usize = 4096;
/// Most elements, comments and pieces of text.
const NODES_MAX: u32 = 1 << 18;

/// Why a text is not read as XML.
#[derive(Debug, thiserror::Error)]
pub enum XmlError {
    /// Larger than any domain.
    #[error("the XML has {bytes} bytes, and a domain's has at most {BYTES_MAX}")]
    TooLarge {
        /// Bytes.
        bytes: usize,
    },
    /// More than a domain has any use for.
    #[error("the XML has more than {limit} {what}, the most that are read")]
    TooMany {
        /// The kind of thing counted.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// Not well-formed, or with a document type.
    #[error("the XML cannot be read: {0}")]
    Malformed(#[from] roxmltree::Error),
}

/// Read a document.
///
/// # Errors
/// [`XmlError`].
pub fn parse(text: &str) -> Result<Document<'_>, XmlError> {
    if text.len() > BYTES_MAX {
        return Err(XmlError::TooLarge { bytes: text.len() });
    }
    if text.matches("xmlns").nth(NAMESPACES_MAX).is_some() {
        return Err(XmlError::TooMany { what: "namespaces", limit: NAMESPACES_MAX });
    }
    // A tag holds no `<`, so each is within one piece, and each of its attributes has a `=`.
    if text.split('<').any(|piece| piece.matches('=').nth(ATTRIBUTES_MAX).is_some()) {
        return Err(XmlError::TooMany { what: "attributes in one element", limit: ATTRIBUTES_MAX });
    }
    let bounds =
        ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..ParsingOptions::default() };
    Ok(Document::parse_with_options(text, bounds)?)
}

/// The changes of one element.
#[derive(Debug, Default)]
struct Change {
    /// By name, in no namespace.
    attributes: BTreeMap<String, String>,
    children: Vec<Element>,
    removed: bool,
}

/// Changes of a document, gathered and then written.
#[derive(Debug)]
pub struct Edits<'d, 't> {
    document: &'d Document<'t>,
    /// By the number of the element's id.
    changes: BTreeMap<u32, Change>,
}

impl<'d, 't> Edits<'d, 't> {
    /// None yet.
    #[must_use]
    pub fn new(document: &'d Document<'t>) -> Self {
        Self { document, changes: BTreeMap::new() }
    }

    /// Give an element an attribute, if it has it not so.
    pub fn set(&mut self, node: Node<'d, 't>, name: &str, value: &str) {
        if node.attribute(name) != Some(value) {
            let change = self.changes.entry(node.id().get()).or_default();
            change.attributes.insert(name.to_owned(), value.to_owned());
        }
    }

    /// Give an element a child more, after those it has.
    pub fn append(&mut self, node: Node<'d, 't>, child: Element) {
        self.changes.entry(node.id().get()).or_default().children.push(child);
    }

    /// Take an element away, with all that is in it.
    pub fn remove(&mut self, node: Node<'d, 't>) {
        self.changes.entry(node.id().get()).or_default().removed = true;
    }

    /// Make an element match `wanted`: give it the attributes and children that are missing or
    /// different. Its others stay.
    pub fn merge(&mut self, node: Node<'d, 't>, wanted: &Element) {
        for (name, value) in &wanted.attributes {
            self.set(node, name, value);
        }
        for child in &wanted.children {
            match node.children().find(|present| child.is_same_as(*present)) {
                Some(present) => self.merge(present, child),
                None => self.append(node, child.clone()),
            }
        }
    }

    /// The text with all changes made.
    #[must_use]
    pub fn apply(&self) -> String {
        let mut pieces = Vec::new();
        for (id, change) in &self.changes {
            // Ids come from this document.
            if let Some(node) = self.document.get_node(NodeId::new(*id)) {
                self.write(node, change, &mut pieces);
            }
        }
        // The ranges do not overlap: an element's attributes, its end and its whole are apart. (The
        // inside of a removed element is not changed.)
        pieces.sort_by_key(|(range, _)| (range.start, range.end));
        let text = self.document.input_text();
        let (mut result, mut done) = (String::with_capacity(text.len()), 0);
        for (range, piece) in pieces {
            result.push_str(&text[done..range.start]);
            result.push_str(&piece);
            done = range.end;
        }
        result.push_str(&text[done..]);
        result
    }

    fn write(&self, node: Node<'_, '_>, change: &Change, pieces: &mut Vec<(Range<usize>, String)>) {
        if change.removed {
            let start = node.range().start - self.space_before(node).len();
            return pieces.push((start..node.range().end, String::new()));
        }
        let mut added = String::new();
        for (name, value) in &change.attributes {
            match node.attribute_node(name.as_str()) {
                Some(attribute) => pieces.push((attribute.range_value(), escaped(value))),
                None => added.push_str(&format!(" {name}='{}'", escaped(value))),
            }
        }
        let attributes_end = self.attributes_end(node);
        if change.children.is_empty() {
            return pieces.push((attributes_end..attributes_end, added));
        }
        let own = line_start(self.space_before(node));
        let inner = match node.first_element_child() {
            Some(child) => line_start(self.space_before(child)).to_owned(),
            None => format!("{own}  "),
        };
        let children: String = change
            .children
            .iter()
            .map(|child| format!("\n{inner}{}", child.text(&inner, &|uri| prefix_at(node, uri))))
            .collect();
        let range = node.range();
        let source = &self.document.input_text()[range.clone()];
        if source.ends_with("/>") {
            let name = &self.document.input_text()[self.tag_name(node)];
            pieces.push((attributes_end..range.end, format!("{added}>{children}\n{own}</{name}>")));
            return;
        }
        pieces.push((attributes_end..attributes_end, added));
        // The end tag is the last of the element, and there is room before it.
        let end = range.start + source.rfind("</").unwrap_or(source.len());
        let last = node.last_element_child();
        match last {
            Some(last) => pieces.push((last.range().end..last.range().end, children)),
            None => pieces.push((end..end, format!("{children}\n{own}"))),
        }
    }

    /// Where the name of an element's start tag is.
    fn tag_name(&self, node: Node<'_, '_>) -> Range<usize> {
        let start = node.range().start + 1;
        let rest = &self.document.input_text()[start..];
        let length = rest.find(|letter: char| letter.is_whitespace() || "/>".contains(letter));
        start..start + length.unwrap_or(rest.len())
    }

    /// Where an element's attributes end, namespace declarations included.
    fn attributes_end(&self, node: Node<'_, '_>) -> usize {
        let text = self.document.input_text();
        let (mut place, mut quote) = (self.tag_name(node).end, None);
        for (offset, letter) in text[place..].char_indices() {
            match (quote, letter) {
                (None, '\'' | '"') => quote = Some(letter),
                (Some(open), _) if open == letter => quote = None,
                (None, '/' | '>') => {
                    place += offset;
                    break;
                }
                _ => {}
            }
        }
        text[..place].trim_end().len()
    }

    /// The white space before an element.
    fn space_before(&self, node: Node<'_, '_>) -> &str {
        let before = &self.document.input_text()[..node.range().start];
        &before[before.trim_end().len()..]
    }
}

/// The start of a line that follows this white space.
fn line_start(space: &str) -> &str {
    space.rsplit('\n').next().unwrap_or_default()
}

/// The prefix of a namespace where `node` is. The default namespace gives none, since attributes
/// without a prefix are not in it.
fn prefix_at(node: Node<'_, '_>, uri: &str) -> Option<String> {
    let named = |namespace: &&roxmltree::Namespace<'_>| {
        namespace.uri() == uri && namespace.name().is_some()
    };
    let namespace = node.namespaces().find(named)?;
    let prefix = namespace.name()?;
    // An inner declaration may hide the prefix.
    (node.lookup_namespace_uri(Some(prefix)) == Some(uri)).then(|| prefix.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NS: &str = "urn:x";

    fn changed(text: &str, wanted: &Element) -> String {
        let document = parse(text).unwrap();
        let mut edits = Edits::new(&document);
        edits.merge(document.root_element(), wanted);
        let changed = edits.apply();
        // A second merge of the same changes nothing.
        let document = parse(&changed).unwrap();
        let mut edits = Edits::new(&document);
        edits.merge(document.root_element(), wanted);
        assert_eq!(edits.apply(), changed);
        changed
    }

    #[test]
    fn what_is_not_asked_for_stays_as_it_is() {
        let text = "<?xml version='1.0'?>\r\n<!-- a -->\n<d  x = \"1\"\n   y='&lt;'>\n\t\
                    <e><![CDATA[<]]></e><?p i?>\n  <!-- </d> -->\n</d>\n<!-- b -->";
        let wanted = Element::new("d").with("y", "<").child(Element::new("e"));
        assert_eq!(changed(text, &wanted), text);
        let wanted = Element::new("d").with("x", "2").with("z", "'");
        let expected = text.replace("\"1\"", "\"2\"").replace("'&lt;'", "'&lt;' z='&apos;'");
        assert_eq!(changed(text, &wanted), expected);
    }

    #[test]
    fn children_are_added_where_the_others_are() {
        let wanted = || Element::new("d").child(Element::new("e").child(Element::new("f")));
        for (text, expected) in [
            ("<d/>", "<d>\n  <e>\n    <f/>\n  </e>\n</d>"),
            ("<d a='/>' />", "<d a='/>'>\n  <e>\n    <f/>\n  </e>\n</d>"),
            ("<d></d >", "<d>\n  <e>\n    <f/>\n  </e>\n</d >"),
            ("<d>\n\t<g/>\n</d>", "<d>\n\t<g/>\n\t<e>\n\t  <f/>\n\t</e>\n</d>"),
            (
                "<d>\n <e>\n  <g/><!-- </e> -->\n </e>\n</d>",
                "<d>\n <e>\n  <g/>\n  <f/><!-- </e> -->\n </e>\n</d>",
            ),
        ] {
            assert_eq!(changed(text, &wanted()), expected);
        }
    }

    #[test]
    fn elements_of_a_namespace_take_its_prefix_or_bring_one() {
        let inner = Element::of(NS, "q", "p").keyed("name", "n").with("v", "1");
        let wanted = Element::new("d").child(Element::of(NS, "q", "o").child(inner));
        assert_eq!(
            changed("<d/>", &wanted),
            "<d>\n  <q:o xmlns:q='urn:x'>\n    <q:p name='n' v='1'/>\n  </q:o>\n</d>"
        );
        assert_eq!(
            changed("<d xmlns:z='urn:x'><z:o><z:p name='m' v='2'/></z:o></d>", &wanted),
            "<d xmlns:z='urn:x'><z:o><z:p name='m' v='2'/>\n<z:p name='n' v='1'/></z:o></d>"
        );
        // A like-named element in another namespace, or in none, is another element.
        let other = changed("<d><o/><q:o xmlns:q='urn:y'/></d>", &wanted);
        assert!(other.contains("<q:o xmlns:q='urn:x'>"), "{other}");
        let changed = changed("<d xmlns:z='urn:x'><z:o><z:p name='n' v='2'/></z:o></d>", &wanted);
        assert!(changed.contains("<z:p name='n' v='1'/></z:o>"), "{changed}");
    }

    #[test]
    fn an_element_goes_with_the_space_before_it() {
        let document = parse("<d>\n  <e/>\n  <f a='1'>x</f>\n  <g/>\n</d>").unwrap();
        let mut edits = Edits::new(&document);
        edits.remove(document.root_element().children().find(|n| n.has_tag_name("f")).unwrap());
        assert_eq!(edits.apply(), "<d>\n  <e/>\n  <g/>\n</d>");
    }

    #[test]
    fn hostile_xml_is_refused_before_it_costs_anything() {
        let bomb = "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;&a;'>]><d>&b;</d>";
        assert!(parse(bomb).unwrap_err().to_string().contains("DTD"));
        let external = "<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><d>&a;</d>";
        assert!(matches!(parse(external), Err(XmlError::Malformed(_))));
        assert!(matches!(parse("<d>&a;</d>"), Err(XmlError::Malformed(_))));
        let large = format!("<d>{}</d>", "x".repeat(10 << 20));
        assert!(parse(&large).unwrap_err().to_string().contains("at most 4194304"));
        let deep = format!("{}{}", "<d>".repeat(100_000), "</d>".repeat(100_000));
        assert!(parse(&deep).is_ok(), "no stack is used up");
        let wide = "<d/>".repeat(300_000);
        assert!(matches!(parse(&format!("<d>{wide}</d>")), Err(XmlError::Malformed(_))));
        let declared: String = (0..300).map(|n| format!(" xmlns:a{n}='u{n}'")).collect();
        assert!(matches!(parse(&format!("<d{declared}/>")), Err(XmlError::TooMany { .. })));
        let attributes: String = (0..5000).map(|n| format!(" a{n}=''")).collect();
        assert!(matches!(parse(&format!("<d{attributes}/>")), Err(XmlError::TooMany { .. })));
        for broken in ["", "<d>", "<d></e>", "<d a='<'/>", "text", "<a/><b/>", "\u{0}"] {
            assert!(matches!(parse(broken), Err(XmlError::Malformed(_))), "{broken:?}");
        }
    }
}
