use super::*;

/// Names, each ended by zero.
const STRINGS: &[u8] =
    b"\0sk_buff\0pkt_type\0ip_summed\0csum_start\0csum_offset\0mac_header\0next\0";

fn name(wanted: &str) -> u32 {
    let place = STRINGS
        .windows(wanted.len() + 1)
        .position(|name| name == [wanted.as_bytes(), b"\0"].concat());
    u32::try_from(place.unwrap()).unwrap()
}

fn aggregate(kind: u32, named: &str, members: &[(&str, u32, u32)]) -> Vec<u32> {
    let count = u32::try_from(members.len()).unwrap();
    let title = if named.is_empty() { 0 } else { name(named) };
    let mut words = vec![title, 1 << 31 | kind << 24 | count, 0];
    for (named, of, offset) in members {
        let title = if named.is_empty() { 0 } else { name(named) };
        words.extend([title, *of, *offset]);
    }
    words
}

fn written(types: &[Vec<u32>]) -> Vec<u8> {
    let types = types.concat();
    let length = u32::try_from(4 * types.len()).unwrap();
    let strings = u32::try_from(STRINGS.len()).unwrap();
    let header = [MAGIC | 1 << 16, 24, 0, length, length, strings];
    let words = header.into_iter().chain(types);
    let mut bytes: Vec<u8> = words.flat_map(u32::to_ne_bytes).collect();
    bytes.extend(STRINGS);
    bytes
}

/// As the kernel has it: the headers are a struct within a union, the checksum's parts in a union again.
fn kernel(summed: u32, mac: u32) -> Vec<u8> {
    let int = vec![0, INT << 24, 2, 16];
    let parts = aggregate(STRUCT, "", &[("csum_start", 1, 0), ("csum_offset", 1, 16)]);
    let sum = aggregate(UNION, "", &[("", 2, 0)]);
    let headers = aggregate(
        STRUCT,
        "",
        &[
            ("pkt_type", 1, 3 << 24),
            ("ip_summed", 1, 2 << 24 | summed),
            ("", 3, 64),
            ("mac_header", 1, mac),
        ],
    );
    let group = aggregate(UNION, "", &[("", 4, 0)]);
    let skb = aggregate(STRUCT, "sk_buff", &[("next", 1, 0), ("", 5, 8 * 130)]);
    written(&[int, parts, sum, headers, group, skb])
}

#[test]
fn fields_are_found_through_what_has_no_name() {
    let bytes = kernel(5, 8 * 54);
    let found = fields(&Btf::new(&bytes).unwrap()).unwrap();
    let expected = SkbFields {
        region: 128,
        ip_summed: 2,
        ip_summed_shift: if cfg!(target_endian = "little") { 5 } else { 1 },
        csum_start: 10,
        csum_offset: 12,
        mac_header: 56,
    };
    assert_eq!(found, expected);
}

#[test]
fn fields_that_are_not_read_at_once_are_none() {
    for (summed, mac) in [(5, 8 * 62), (7, 8 * 54), (5, 8 * 54 + 1)] {
        let bytes = kernel(summed, mac);
        assert_eq!(fields(&Btf::new(&bytes).unwrap()), None);
    }
}

#[test]
fn no_bytes_are_read_beyond_the_end() {
    let whole = kernel(5, 8 * 54);
    for length in 0..whole.len() {
        // Of what is cut off nothing is found, or all.
        let _ = Btf::new(&whole[..length]).and_then(|btf| fields(&btf));
    }
}

#[test]
fn this_kernel_has_them() {
    if let Ok(bytes) = fs::read(VMLINUX) {
        let found = fields(&Btf::new(&bytes).unwrap()).unwrap();
        assert_eq!(found.csum_offset, found.csum_start + 2);
        println!("{found:?}");
    }
}

#[test]
fn types_are_numbered_from_one() {
    let function = vec![name("next"), FUNC << 24, 1];
    let types = [vec![0, INT << 24, 2, 16], function.clone(), function];
    let bytes = written(&types);
    let btf = Btf::new(&bytes).unwrap();
    assert_eq!(btf.number_of(FUNC, b"next"), Some(2));
    assert_eq!(btf.number_of(STRUCT, b"next"), None);
    assert_eq!(btf.at(2), Some(24 + 16));
    assert_eq!(btf.at(0), None);
    assert_eq!(btf.at(4), None);
    if let Ok(bytes) = fs::read(VMLINUX) {
        let btf = Btf::new(&bytes).unwrap();
        assert_eq!(btf.number_of(FUNC, b"no such function"), None);
        println!("{:?}", btf.number_of(FUNC, KERNEL_CONTEXT.as_bytes()));
    }
}
