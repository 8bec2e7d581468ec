// Command protos writes the descriptors of the Envoy messages that Headrace uses into a directory: descriptors.binpb, one
// FileDescriptorSet for protoc --descriptor_set_in, and files, the names of those that Python modules are made of.
//
// Every file gets a name below headrace/xds, so that the modules made of it are Headrace's own and stand beside any other
// distribution of the same protos. Annotations that only code generators and validators read are left out, and with them
// the files that declare them.
package main

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "github.com/cncf/xds/go/xds/core/v3"
	_ "github.com/cncf/xds/go/xds/type/matcher/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/matcher/action/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/override_host/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
)

// prefix is the folder of the Python modules, below controller.
const prefix = "headrace/xds/"

// wanted are the files that code or tests import; what they depend on comes along.
var wanted = []string{
	"envoy/config/cluster/v3/cluster.proto",
	"envoy/config/listener/v3/listener.proto",
	"envoy/config/route/v3/route.proto",
	"envoy/extensions/common/matching/v3/extension_matcher.proto",
	"envoy/extensions/filters/common/matcher/action/v3/skip_action.proto",
	"envoy/extensions/filters/http/buffer/v3/buffer.proto",
	"envoy/extensions/filters/http/ext_proc/v3/ext_proc.proto",
	"envoy/extensions/filters/http/header_mutation/v3/header_mutation.proto",
	"envoy/extensions/filters/http/rbac/v3/rbac.proto",
	"envoy/extensions/filters/http/router/v3/router.proto",
	"envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
	"envoy/extensions/http/early_header_mutation/header_mutation/v3/header_mutation.proto",
	"envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
	"envoy/extensions/load_balancing_policies/override_host/v3/override_host.proto",
	"envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
	"envoy/extensions/transport_sockets/tls/v3/tls.proto",
	"envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
	"envoy/service/discovery/v3/discovery.proto",
	"envoy/service/ext_proc/v3/external_processor.proto",
	"envoy/type/matcher/v3/http_inputs.proto",
	"envoy/type/metadata/v3/metadata.proto",
	"xds/core/v3/extension.proto",
	"xds/type/matcher/v3/matcher.proto",
}

// annotations are files that declare options only.
func annotations(path string) bool {
	for _, folder := range []string{"envoy/annotations/", "udpa/annotations/", "xds/annotations/", "validate/"} {
		if strings.HasPrefix(path, folder) {
			return true
		}
	}
	return false
}

// ours tells the files that are made here from those that come with the Python packages protobuf and googleapis-common-protos.
func ours(path string) bool {
	return !strings.HasPrefix(path, "google/protobuf/") && !strings.HasPrefix(path, "google/rpc/")
}

// plain removes extensions and unknown fields of the options anywhere in a message: the annotations.
func plain(message protoreflect.Message) {
	message.SetUnknown(nil)
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsExtension():
			message.Clear(field)
		case field.IsMap() || field.Message() == nil:
		case field.IsList():
			for at := range value.List().Len() {
				plain(value.List().Get(at).Message())
			}
		default:
			plain(value.Message())
		}
		return true
	})
}

type set struct {
	seen  map[string]bool
	files []*descriptorpb.FileDescriptorProto
}

// add appends a file behind what it depends on.
func (s *set) add(path string) error {
	if s.seen[path] {
		return nil
	}
	s.seen[path] = true
	found, err := protoregistry.GlobalFiles.FindFileByPath(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	file := protodesc.ToFileDescriptorProto(found)
	if ours(path) {
		plain(file.ProtoReflect())
		file.Name = proto.String(prefix + path)
	}
	var dependencies []string
	for _, dependency := range file.Dependency {
		if annotations(dependency) {
			continue
		}
		if err := s.add(dependency); err != nil {
			return err
		}
		if ours(dependency) {
			dependency = prefix + dependency
		}
		dependencies = append(dependencies, dependency)
	}
	// Indexes into the dependencies as they were.
	file.Dependency, file.PublicDependency, file.WeakDependency = dependencies, nil, nil
	s.files = append(s.files, file)
	return nil
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("protos: name the directory to write to")
	}
	s := &set{seen: map[string]bool{}}
	for _, path := range wanted {
		if err := s.add(path); err != nil {
			log.Fatalf("protos: %v. Fix: import its package in controller/protos/main.go.", err)
		}
	}
	content, err := proto.MarshalOptions{Deterministic: true}.Marshal(&descriptorpb.FileDescriptorSet{File: s.files})
	if err != nil {
		log.Fatalf("protos: %v", err)
	}
	var names strings.Builder
	for _, file := range s.files {
		if strings.HasPrefix(file.GetName(), prefix) {
			fmt.Fprintln(&names, file.GetName())
		}
	}
	for name, content := range map[string][]byte{"descriptors.binpb": content, "files": []byte(names.String())} {
		if err := os.WriteFile(filepath.Join(os.Args[1], name), content, 0o644); err != nil {
			log.Fatalf("protos: %v", err)
		}
	}
}
