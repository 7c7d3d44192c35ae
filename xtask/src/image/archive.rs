//! An OCI image layout as one tar archive: `oci-layout`, `index.json`, and blobs by their digests.
//!
//! `index.json` names one image index, which names a manifest for each architecture. The name of
//! the image stands in two annotations: OCI's for the tag, and containerd's for the whole name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::layer::{Entry, Layer, digest};
use super::programs::Arch;
use super::reference::Reference;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What runs on one architecture.
#[derive(Clone, Debug)]
pub struct Platform {
    pub arch: Arch,
    pub entries: Vec<Entry>,
    pub entrypoint: Vec<String>,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// Of the image index, by which the image can be pinned.
    pub digest: String,
    /// Size of the archive.
    pub bytes: u64,
    /// Size of each layer, compressed.
    pub layers: Vec<(Arch, u64)>,
}

/// Writes the archive, whole or not at all. Times are `epoch`, in seconds since 1970.
pub fn write(
    output: &Path,
    reference: &Reference,
    platforms: &[Platform],
    epoch: u64,
) -> Result<Written> {
    let mut blobs = Blobs::default();
    let mut manifests = Vec::new();
    let mut layers = Vec::new();
    for platform in platforms {
        let layer = Layer::of(&platform.entries, epoch)?;
        layers.push((platform.arch, layer.gzip.len() as u64));
        let config = blobs.json(CONFIG, &config(platform, &layer, reference));
        let layer = blobs.add(LAYER, layer.gzip);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
        });
        let mut manifest = blobs.json(MANIFEST, &manifest);
        manifest["platform"] = json!({ "architecture": platform.arch.as_str(), "os": "linux" });
        manifests.push(manifest);
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    let mut index = blobs.json(INDEX, &index);
    let digest = index["digest"].as_str().unwrap_or_default().to_owned();
    index["annotations"] = json!({
        "io.containerd.image.name": reference.to_string(),
        "org.opencontainers.image.ref.name": reference.tag(),
    });
    let top = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [index] });
    let bytes = blobs.pack(&top, epoch)?;
    let size = bytes.len() as u64;
    replace(output, bytes)?;
    Ok(Written {
        digest,
        bytes: size,
        layers,
    })
}

fn config(platform: &Platform, layer: &Layer, reference: &Reference) -> Value {
    json!({
        "architecture": platform.arch.as_str(),
        "os": "linux",
        "config": {
            "Entrypoint": platform.entrypoint,
            "Labels": {
                "org.opencontainers.image.title": "Sallyport",
                "org.opencontainers.image.version": reference.tag(),
                "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [layer.diff_id] },
    })
}

/// Blobs by the hexadecimal digits of their digests.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    /// Adds one and returns its descriptor.
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        let digits = digest.trim_start_matches("sha256:").to_owned();
        self.0.insert(digits, bytes);
        descriptor
    }

    fn json(&mut self, media_type: &str, value: &Value) -> Value {
        self.add(media_type, value.to_string().into_bytes())
    }

    fn pack(self, index: &Value, epoch: u64) -> Result<Vec<u8>> {
        let mut files = vec![
            (
                "oci-layout".to_owned(),
                json!({ "imageLayoutVersion": "1.0.0" })
                    .to_string()
                    .into_bytes(),
            ),
            ("index.json".to_owned(), index.to_string().into_bytes()),
        ];
        let blobs = self.0.into_iter();
        files.extend(blobs.map(|(digits, bytes)| (format!("blobs/sha256/{digits}"), bytes)));
        let mut archive = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(bytes.len() as u64);
            header.set_mtime(epoch);
            archive.append_data(&mut header, path, bytes.as_slice())?;
        }
        Ok(archive.into_inner()?)
    }
}

fn replace(output: &Path, bytes: Vec<u8>) -> Result<()> {
    let directory = output.parent().context("the archive needs a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let unfinished = output.with_extension("unfinished");
    fs::write(&unfinished, bytes)
        .and_then(|()| fs::rename(&unfinished, output))
        .with_context(|| format!("writing {}", output.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// The files of an archive by their names.
    fn read(archive: &Path) -> BTreeMap<String, Vec<u8>> {
        let file = fs::File::open(archive).expect("the archive");
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(file).entries().expect("an archive") {
            let mut entry = entry.expect("an entry");
            let mut bytes = Vec::new();
            let path = entry.path().expect("a path").display().to_string();
            entry.read_to_end(&mut bytes).expect("its bytes");
            files.insert(path, bytes);
        }
        files
    }

    fn follow(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Vec<u8> {
        let digest = descriptor["digest"].as_str().expect("a digest");
        let bytes = &files[&format!("blobs/{}", digest.replace(':', "/"))];
        assert_eq!(super::digest(bytes), digest);
        assert_eq!(descriptor["size"], bytes.len());
        bytes.clone()
    }

    fn json(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).expect("JSON")
    }

    #[test]
    fn every_descriptor_leads_to_its_blob() {
        let dir = tempfile::tempdir().expect("a directory");
        let program = dir.path().join("program");
        let platforms = [Arch::Amd64, Arch::Arm64].map(|arch| {
            let program = program.with_extension(arch.as_str());
            fs::write(&program, arch.as_str()).expect("writable");
            Platform {
                arch,
                entries: vec![Entry {
                    path: "egress-agent".to_owned(),
                    from: program,
                    mode: 0o755,
                }],
                entrypoint: vec!["/egress-agent".to_owned()],
            }
        });
        let output = dir.path().join("below/agent.tar");
        let reference: Reference = "sallyport/agent:1.2".parse().expect("a name");
        let written = write(&output, &reference, &platforms, 0).expect("an archive");
        let files = read(&output);
        assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
        let top = json(&files["index.json"]);
        let named = &top["manifests"][0];
        assert_eq!(named["digest"], written.digest);
        assert_eq!(
            named["annotations"]["io.containerd.image.name"],
            "localhost/sallyport/agent:1.2"
        );
        assert_eq!(
            named["annotations"]["org.opencontainers.image.ref.name"],
            "1.2"
        );
        let index = json(&follow(&files, named));
        let mut blobs = 1;
        for (at, platform) in platforms.iter().enumerate() {
            let manifest = &index["manifests"][at];
            assert_eq!(manifest["platform"]["architecture"], platform.arch.as_str());
            let manifest = json(&follow(&files, manifest));
            let config = json(&follow(&files, &manifest["config"]));
            assert_eq!(config["architecture"], platform.arch.as_str());
            assert_eq!(config["config"]["Entrypoint"][0], "/egress-agent");
            let layer = follow(&files, &manifest["layers"][0]);
            let mut tar = Vec::new();
            flate2::read::GzDecoder::new(layer.as_slice())
                .read_to_end(&mut tar)
                .expect("gzip");
            assert_eq!(config["rootfs"]["diff_ids"][0], super::digest(&tar));
            blobs += 3;
        }
        let stored = files.keys().filter(|path| path.starts_with("blobs/"));
        assert_eq!(stored.count(), blobs, "nothing is there that nobody names");
        let before = fs::read(&output).expect("the archive");
        write(&output, &reference, &platforms, 0).expect("an archive");
        assert_eq!(fs::read(&output).expect("the archive"), before);
    }
}
